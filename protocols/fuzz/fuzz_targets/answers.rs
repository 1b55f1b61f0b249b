//! Bodies of answers.
#![no_main]

use argus_protocols::{Answer, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(answer) = Answer::from_bytes(data) else {
        return;
    };
    assert_eq!(answer.to_bytes(), data);
    match &answer {
        Answer::Picture(picture) => assert!(!picture.is_empty()),
        Answer::Nsfw(features) => assert!(features.clip.iter().all(|x| x.abs() <= 1.01)),
        Answer::Embeddings(all) => {
            assert!((1..=limits::PICTURES).contains(&all.len()));
            assert!(all.iter().flatten().all(|x| x.is_finite()));
        }
        Answer::Classes(all) => {
            assert!((1..=limits::PICTURES).contains(&all.len()));
            assert!(all.iter().all(|scores| (0.0..=1.0).contains(&scores.porn)));
        }
    }
    let _ = format!("{answer:?}");
});
