//! Bodies of requests.
#![no_main]

use argus_protocols::{Task, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(task) = Task::from_bytes(data) else {
        return;
    };
    assert_eq!(task.to_bytes(), data);
    assert!((1..=limits::MODEL_ID).contains(&task.model().len()));
    match &task {
        Task::Generation(asked) => {
            assert!(asked.guidance.is_finite() && asked.guidance >= 0.0);
            // What a miner will work out before it makes room.
            assert!(u64::from(asked.width) * u64::from(asked.height) <= limits::ANSWER_PIXELS);
            assert!(asked.controls.len() <= limits::CONTROLS);
            assert!(asked.parts().any(|part| part == task.kind()));
        }
        Task::Upscale(asked) => assert!(limits::UPSCALE_FACTORS.contains(&asked.factor)),
        Task::ImageEmbedding(asked) | Task::NsfwClassification(asked) => {
            assert!((1..=limits::PICTURES).contains(&asked.pictures.len()));
        }
    }
    let _ = format!("{task:?}");
});
