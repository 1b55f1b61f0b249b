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
    if let Task::TextToImage(task) = &task {
        assert!(task.guidance.is_finite() && task.guidance >= 0.0);
        // What a miner will work out before it makes room.
        assert!(task.width.checked_mul(task.height).and_then(|p| p.checked_mul(4)).is_some());
    }
    let _ = format!("{task:?}");
});
