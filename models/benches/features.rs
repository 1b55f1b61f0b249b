//! What a picture costs besides making it: hashes, NSFW scores, latents, a pair's
//! measures, PNG, resampling, noise. Medians on one thread: `cargo bench -p argus-models --bench features`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use argus_models::features::{ImageHashes, LatentEncoder, PixelMeasures, structure};
use argus_models::nsfw::NsfwClassifier;
use argus_models::resample::Filter;
use argus_models::{Limits, RgbPicture, noise};

const RUNS: usize = 25;

fn median<R>(mut work: impl FnMut() -> R) -> Duration {
    black_box(work());
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            black_box(work());
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

fn report<R>(what: &str, work: impl FnMut() -> R) {
    println!("{what:<44} {:>9.3} ms", median(work).as_secs_f64() * 1e3);
}

/// Smooth, with some grain, so that it compresses like a photograph.
fn picture(side: u32) -> RgbPicture {
    let mut state = 1u32;
    RgbPicture::from_fn(side, side, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (state >> 29) as u8;
        [(x * 200 / side) as u8 + grain, (y * 200 / side) as u8 + grain, ((x + y) * 100 / side) as u8 + grain]
    })
}

fn main() {
    // `cargo test --benches` runs this too, without asking for figures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| {
        let (large, small) = (picture(1024), picture(64));
        let png = large.encode_png();
        let classifier = NsfwClassifier::embedded().expect("the classifier is in the binary");
        report("four hashes of 1024×1024", || ImageHashes::of(&large));
        report("four hashes of 64×64", || ImageHashes::of(&small));
        let latents = LatentEncoder::embedded(1).expect("the encoder is in the binary");
        let drifted = RgbPicture::from_fn(1024, 1024, |x, y| {
            let place = (y * 1024 + x) as usize * 3;
            std::array::from_fn(|c| large.pixels()[place + c].saturating_add(((x ^ y) & 1) as u8))
        });
        let grey = |picture: &RgbPicture| picture.pixels().iter().step_by(3).copied().collect::<Vec<u8>>();
        let (grey, drifted_grey) = (grey(&large), grey(&drifted));
        report("latents of 1024×1024", || latents.encode(&large).expect("a picture"));
        report("latents of 64×64", || latents.encode(&small).expect("a picture"));
        report("a pair of 1024×1024", || PixelMeasures::of(&large, &drifted));
        report("structure alone of 1024×1024", || structure(&grey, &drifted_grey, 1024));
        report("a pair of 64×64", || PixelMeasures::of(&small, &small));
        report("NSFW scores of 1024×1024", || classifier.classify(&large));
        report("NSFW scores of 64×64", || classifier.classify(&small));
        report("1024×1024 to 224×224, bicubic", || large.resize(224, 224, Filter::Bicubic));
        report("1024×1024 to PNG", || large.encode_png());
        report("1024×1024 from PNG", || RgbPicture::decode(&png, &Limits::default()).expect("a good file"));
        report("noise of 4×128×128", || noise::normal(1, 0, 4 * 128 * 128));
    });
}
