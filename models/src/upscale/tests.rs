//! The networks against torch's numbers, and what tiling must not change.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::device::DeviceKind;
use crate::embedded;
use crate::parity::assert_parity;

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

fn keep_going(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct Fixture {
    upscaler: Upscaler,
    picture: RgbPicture,
    /// `[3, height, width]` of the result.
    expected: Vec<f32>,
}

impl Fixture {
    /// Writes the fixture's model out as a folder and opens it as any user's, or the embedded one.
    fn open(name: &str, embedded_as: Option<&str>, threads: usize) -> Self {
        let bytes = bytes(&format!("upscale/{name}.fixture"));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config.json"];
        let folder = tempfile::tempdir().unwrap();
        let files = match embedded_as {
            Some(name) => embedded::find(name).unwrap(),
            None => {
                let weights: Vec<(String, TensorView)> = tensors
                    .iter()
                    .filter_map(|(name, view)| Some((name.strip_prefix("model:")?.to_owned(), view)))
                    .collect();
                write(folder.path(), config, &safetensors::serialize(weights, None).unwrap())
            }
        };
        let upscaler = Upscaler::open(&files, DeviceKind::Cpu, threads).unwrap();
        let picture = tensors.tensor("picture").unwrap();
        let (height, width) = (picture.shape()[0] as u32, picture.shape()[1] as u32);
        let expected = tensors.tensor("expected").unwrap().data();
        Self {
            upscaler,
            picture: RgbPicture::new(width, height, picture.data().to_vec()).unwrap(),
            expected: expected.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        }
    }
}

fn write(folder: &Path, config: &str, weights: &[u8]) -> ModelFiles {
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    ModelFiles::folder(folder)
}

/// The result before it is rounded to 8 bits, in one tile, `[3, height, width]`.
fn samples(upscaler: &Upscaler, picture: &RgbPicture) -> Vec<f32> {
    let Plan { border, multiple, scale, .. } = upscaler.plan;
    let side = |side: u32| (side as usize).next_multiple_of(multiple);
    let (width, height) = (side(picture.width()), side(picture.height()));
    let tiles = tiles([width, height], 4096, border, multiple);
    assert_eq!(tiles.len(), 1);
    let mut control = keep_going;
    let mut progress = Progress { control: &mut control, done: 0, of: upscaler.plan.stages };
    let input = upscaler.input(picture, tiles[0].input).unwrap();
    let output = upscaler.network.forward(&input, PART_BYTES, &mut progress).unwrap();
    assert_eq!(progress.done, upscaler.plan.stages);
    let output = output.narrow(2, 0, picture.height() as usize * scale).unwrap();
    let output = output.narrow(3, 0, picture.width() as usize * scale).unwrap();
    output.flatten_all().unwrap().to_vec1().unwrap()
}

const TINY: [&str; 6] =
    ["rrdbnet-x4", "rrdbnet-x2", "rrdbnet-community", "compact-x2", "compact-x4", "upconv7"];

#[test]
fn every_network_gives_torchs_numbers() {
    let embedded = [("embedded-x2", Some("upscale-x2")), ("embedded-x4", Some("upscale-x4"))];
    for (name, embedded_as) in TINY.map(|name| (name, None)).into_iter().chain(embedded) {
        let Fixture { upscaler, picture, expected } = Fixture::open(name, embedded_as, 2);
        let found = samples(&upscaler, &picture);
        assert_parity(name, &found, &expected);

        let upscaled = upscaler.upscale(&picture, upscaler.scale(), &mut keep_going).unwrap();
        let pixels = (upscaled.width() * upscaled.height()) as usize;
        for (index, sample) in upscaled.pixels().iter().enumerate() {
            let exact = expected[index % 3 * pixels + index / 3].clamp(0.0, 1.0) * 255.0;
            assert!((f32::from(*sample) - exact).abs() < 0.51, "{name}: sample {index}");
        }
    }
}

#[test]
fn tiles_and_threads_change_no_bit() {
    for name in ["compact-x2", "compact-x4", "upconv7", "rrdbnet-x4", "rrdbnet-x2"] {
        let Fixture { mut upscaler, .. } = Fixture::open(name, None, 2);
        let picture = RgbPicture::decode(&bytes("pictures/chelsea-96x80.png"), &Default::default()).unwrap();
        // An odd size, for the networks that take pairs of pixels.
        let picture = picture.crop(0, 0, 95, 77);
        let whole = upscaler.upscale(&picture, upscaler.scale(), &mut keep_going).unwrap();
        assert_eq!(
            whole,
            Fixture::open(name, None, 1)
                .upscaler
                .upscale(&picture, upscaler.scale(), &mut keep_going)
                .unwrap()
        );
        let side = 2 * upscaler.plan.border.pixels() + 20;
        upscaler.part_bytes = upscaler.plan.pixel_bytes.map_or(1, |bytes| bytes * side * side);
        let (mut told, mut of) = (0, 0);
        let mut count = |_: usize, total: usize| {
            (told, of) = (told + 1, total);
            ControlFlow::Continue(())
        };
        let parts = upscaler.upscale(&picture, upscaler.scale(), &mut count).unwrap();
        match upscaler.plan.pixel_bytes {
            Some(_) => assert!(of > 4 * upscaler.plan.stages, "{name}: {of} stages are few tiles"),
            None => assert!(told > 2 * of, "{name}: {told} words for {of} stages are few strips"),
        }
        assert!(whole == parts, "{name}: parts show");
    }
}

#[test]
fn a_network_of_scale_4_serves_2_as_well() {
    let Fixture { upscaler, picture, .. } = Fixture::open("embedded-x4", Some("upscale-x4"), 2);
    assert_eq!(upscaler.factors(), [2, 4]);
    let double = upscaler.upscale(&picture, 2, &mut keep_going).unwrap();
    assert_eq!((double.width(), double.height()), (2 * picture.width(), 2 * picture.height()));
    let fourfold = upscaler.upscale(&picture, 4, &mut keep_going).unwrap();
    assert_eq!(double, fourfold.resize(double.width(), double.height(), Filter::Lanczos));
    assert_eq!(Fixture::open("embedded-x2", Some("upscale-x2"), 1).upscaler.factors(), [2]);
}

#[test]
fn a_photograph_gains_what_bicubic_does_not_give() {
    let decibels = |a: &RgbPicture, b: &RgbPicture| {
        let squares = a.pixels().iter().zip(b.pixels()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        10.0 * (255.0f64.powi(2) * a.pixels().len() as f64 / squares.sum::<f64>()).log10()
    };
    let photograph = RgbPicture::decode(&bytes("pictures/chelsea-96x80.png"), &Default::default()).unwrap();
    let small = photograph.resize(48, 40, Filter::Bicubic);
    let upscaler = Upscaler::open(&embedded::find("upscale-x2").unwrap(), DeviceKind::Cpu, 2).unwrap();
    let network = decibels(&upscaler.upscale(&small, 2, &mut keep_going).unwrap(), &photograph);
    let bicubic = decibels(&small.resize(96, 80, Filter::Bicubic), &photograph);
    assert!(network > bicubic + 1.0, "{network:.2} dB against {bicubic:.2} dB");
    println!("{network:.2} dB, bicubic {bicubic:.2} dB");
}

#[test]
fn work_ends_where_it_is_told_to_and_progress_reaches_the_end() {
    let Fixture { mut upscaler, picture, .. } = Fixture::open("rrdbnet-x4", None, 1);
    let mut told = Vec::new();
    let mut note = |done: usize, of: usize| {
        told.push((done, of));
        ControlFlow::Continue(())
    };
    upscaler.upscale(&picture, 4, &mut note).unwrap();
    // Two blocks of three dense ones, and the enlargement.
    assert_eq!(told, (0..=7).map(|done| (done, 7)).collect::<Vec<_>>());

    upscaler.part_bytes = 1;
    let mut stop =
        |done: usize, _: usize| if done == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let error = upscaler.upscale(&picture, 4, &mut stop).unwrap_err();
    assert!(matches!(error, GenerateError::Cancelled { done: 1, .. }), "{error}");
}

#[test]
fn any_shape_is_taken_and_what_is_too_large_is_refused() {
    for name in TINY {
        let Fixture { upscaler, .. } = Fixture::open(name, None, 1);
        let factor = upscaler.scale();
        for (width, height) in [(1, 1), (1, 40), (37, 2)] {
            let picture = RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, 200]);
            let upscaled = upscaler.upscale(&picture, factor, &mut keep_going).unwrap();
            assert_eq!((upscaled.width(), upscaled.height()), (factor * width, factor * height), "{name}");
        }
        for factor in [0, 1, 3, 8, u32::MAX] {
            let picture = RgbPicture::from_fn(2, 2, |_, _| [0; 3]);
            let error = upscaler.upscale(&picture, factor, &mut keep_going).unwrap_err();
            assert_eq!(error.reason(), "invalid");
        }
        let large = RgbPicture::from_fn(2049, 2048, |_, _| [0; 3]);
        let error = upscaler.upscale(&large, factor, &mut keep_going).unwrap_err();
        assert!(matches!(error, GenerateError::Invalid { field: "picture", .. }), "{error}");
    }
}

#[test]
fn weights_and_configs_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |config: &str, tensors: &[(&str, Vec<usize>)]| {
        let zeros = vec![0u8; 4 << 16];
        let views: HashMap<&str, TensorView> = tensors
            .iter()
            .map(|(name, shape)| {
                let bytes = 4 * shape.iter().product::<usize>();
                (*name, TensorView::new(Dtype::F32, shape.clone(), &zeros[..bytes]).unwrap())
            })
            .collect();
        let files = write(folder.path(), config, &safetensors::serialize(views, None).unwrap());
        Upscaler::open(&files, DeviceKind::Cpu, 1).err().map(|error| error.reason())
    };
    let first = ("body.0.weight", vec![8, 3, 3, 3]);
    let config = |architecture: &str| format!(r#"{{"architecture": "{architecture}", "scale": 4}}"#);
    assert_eq!(open("{}", &[]), Some("bad_config"));
    assert_eq!(open(&config("swinir"), &[]), Some("bad_config"));
    let range = r#"{"architecture": "upconv7", "scale": 2, "input_range": [1, 0]}"#;
    assert_eq!(open(range, &[]), Some("bad_config"));
    for architecture in ["rrdbnet", "srvggnet-compact", "upconv7"] {
        assert_eq!(open(&config(architecture), &[]), Some("unsuitable_weights"), "{architecture}");
    }
    let wide = ("body.0.weight", vec![2000, 3, 3, 3]);
    assert_eq!(open(&config("srvggnet-compact"), &[wide]), Some("unsuitable_weights"));
    assert_eq!(open(&config("srvggnet-compact"), std::slice::from_ref(&first)), Some("unsuitable_weights"));
    let slopes = ("body.1.weight", vec![7]);
    assert_eq!(open(&config("srvggnet-compact"), &[first, slopes]), Some("missing_tensor"));
    let scale = [("body.0.weight", vec![12, 3, 3, 3]), ("body.0.bias", vec![12])];
    assert_eq!(open(&config("srvggnet-compact"), &scale), Some("bad_config"));
}

#[test]
fn numbers_that_are_none_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let nan: Vec<u8> = f32::NAN.to_le_bytes().repeat(12 * 27);
    let weight = TensorView::new(Dtype::F32, vec![12, 3, 3, 3], &nan).unwrap();
    let bias = TensorView::new(Dtype::F32, vec![12], &nan[..48]).unwrap();
    let weights = safetensors::serialize([("body.0.weight", weight), ("body.0.bias", bias)], None).unwrap();
    let config = r#"{"architecture": "srvggnet-compact", "scale": 2}"#;
    let upscaler = Upscaler::open(&write(folder.path(), config, &weights), DeviceKind::Cpu, 1).unwrap();
    let picture = RgbPicture::from_fn(4, 4, |_, _| [9; 3]);
    assert_eq!(upscaler.upscale(&picture, 2, &mut keep_going).unwrap_err().reason(), "not_finite");
}
