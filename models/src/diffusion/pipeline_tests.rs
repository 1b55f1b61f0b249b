//! Pictures from pictures, inpainting and ControlNets against diffusers, on tiny random models
//! (`models/training/fixtures/pipelines.py`); and requests that no network can take.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::layout_tests::{Layout, Packing};
use super::tests::{assert_close, keep_going};
use super::*;
use crate::device::DeviceKind;
use crate::layers::FeatureMap;
use crate::parity::length_error;
use crate::placement::{Compute, Placement};
use crate::preprocess::{self, CannyThresholds};
use crate::resample::Filter;

const EDGE: u32 = 32;
const TIMESTEP: f64 = 481.0;
const STEPS: usize = 5;
const SCALES: [f32; 2] = [0.7, 0.4];
const KINDS: [ControlKind; 2] = [ControlKind::Scribble, ControlKind::Canny];

/// One of a family's models, as files that a user would have.
pub(crate) struct Family {
    model: Layout,
    controls: Option<Layout>,
}

impl Family {
    pub(crate) fn unpack(name: &str) -> Self {
        let model = Layout::unpack_from("pipelines", name, Packing::Whole);
        let has_controls = name != "sd21";
        let controls = has_controls
            .then(|| Layout::unpack_from("pipelines", &format!("{name}_controls"), Packing::Whole));
        Self { model, controls }
    }

    pub(crate) fn model_folder(&self) -> &Path {
        self.model.folder.path()
    }

    pub(crate) fn control_folder(&self, kind: ControlKind) -> PathBuf {
        self.controls.as_ref().unwrap().folder.path().join(kind.to_string())
    }

    fn control_files(&self) -> Vec<(ControlKind, ModelFiles)> {
        let kinds = if self.controls.is_some() { &KINDS[..] } else { &[] };
        kinds.iter().map(|kind| (*kind, ModelFiles::folder(self.control_folder(*kind)))).collect()
    }

    /// Gives one of the ControlNets the tiny random depth model.
    fn add_depth_estimator(&self, kind: ControlKind) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/depth.fixture");
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors: Vec<(String, TensorView)> = tensors
            .iter()
            .filter_map(|(name, view)| Some((name.strip_prefix("model:")?.to_owned(), view)))
            .collect();
        let folder = self.control_folder(kind).join(DEPTH_ESTIMATOR);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), &metadata.metadata().as_ref().unwrap()["config.json"])
            .unwrap();
        std::fs::write(folder.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap())
            .unwrap();
    }

    fn open(&self) -> Result<Pipeline, LoadError> {
        Pipeline::open_with_controls(&self.model.files(), &self.control_files(), DeviceKind::Cpu, 1)
    }

    /// The picture of a request, steered by both ControlNets.
    pub(crate) fn steered(&self, placement: Placement, request: &Generate) -> RgbPicture {
        let pipeline =
            Pipeline::open_with_controls(&self.model.files(), &self.control_files(), placement, 1).unwrap();
        let picture = self.picture("picture");
        let control = |kind| Control { kind, picture: picture.clone(), is_prepared: true, scale: SCALES[0] };
        let request = Generate { controls: KINDS.map(control).into(), ..request.clone() };
        pipeline.generate(&request, &mut |_: usize, _: usize| ControlFlow::Continue(())).unwrap()
    }

    /// Gives the model a UNet that sees a mask and a picture's known part.
    fn become_inpaint_model(&self) {
        let folder = self.model.folder.path().join("unet");
        let (weights, config) =
            (folder.join("diffusion_pytorch_model.safetensors"), folder.join("config.json"));
        let bytes = std::fs::read(&weights).unwrap();
        let first = self.model.tensor("conv_in_nine");
        let values: Vec<u8> =
            self.model.expected("conv_in_nine").iter().flat_map(|value| value.to_le_bytes()).collect();
        let first = TensorView::new(Dtype::F32, first.dims().to_vec(), &values).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors.iter().map(|(name, view)| match name {
            "conv_in.weight" => (name, first.clone()),
            name => (name, view),
        });
        let written = safetensors::serialize(tensors, None).unwrap();
        std::fs::write(weights, written).unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        let nine = text.replace("\"in_channels\": 4", "\"in_channels\": 9");
        assert_ne!(text, nine);
        std::fs::write(config, nine).unwrap();
    }

    fn picture(&self, name: &str) -> RgbPicture {
        let tensor = self.model.tensor(&format!("pictures/{name}"));
        let (height, width, _) = tensor.dims3().unwrap();
        let pixels = tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        RgbPicture::new(width as u32, height as u32, pixels).unwrap()
    }

    fn start(&self, kind: &str, strength: f32) -> Start {
        let picture = self.picture("picture");
        match kind {
            "noise" => Start::Noise,
            "picture" => Start::Picture { picture, strength },
            _ => Start::Inpaint { picture, mask: Mask::of(&self.picture("mask")), strength },
        }
    }

    fn request(&self, start: Start, controls: usize) -> Generate {
        let control = |(kind, scale): (ControlKind, f32)| Control {
            kind,
            picture: self.picture(&kind.to_string()),
            is_prepared: true,
            scale,
        };
        Generate {
            prompt: "a red apple, on the table!".into(),
            negative_prompt: "blurry".into(),
            width: EDGE,
            height: EDGE,
            steps: STEPS,
            guidance: 2.0,
            seed: 0,
            start,
            controls: KINDS.into_iter().zip(SCALES).take(controls).map(control).collect(),
        }
    }

    /// Runs a request with the noise that diffusers was given, in the order in which it drew it.
    fn latents(&self, pipeline: &Pipeline, request: &Generate) -> Vec<f32> {
        let plan = pipeline.check(request).unwrap();
        let canvas = pipeline.canvas(request, &plan).unwrap();
        let noise = |index: usize| self.model.expected(&format!("noise_{index}"));
        let is_masked = canvas.as_ref().is_some_and(|canvas| canvas.masks.is_some());
        let is_whole = canvas.as_ref().is_none_or(|canvas| canvas.strength >= 1.0);
        // Networks with nine channels encode the whole picture only where some of it is to be left.
        let draws = match (&canvas, is_masked && pipeline.is_inpaint_network() && is_whole) {
            (None, _) => Draws { start: noise(0), picture: Vec::new(), known: Vec::new() },
            (Some(_), true) => Draws { start: noise(0), picture: Vec::new(), known: noise(1) },
            (Some(_), false) => Draws { start: noise(1), picture: noise(0), known: noise(2) },
        };
        let mut step_noise = SeededNoise { seed: 0 };
        pipeline.denoise(request, canvas.as_ref(), &plan, draws, &mut step_noise, &mut keep_going).unwrap()
    }

    fn compare(&self, pipeline: &Pipeline, runs: &[(&str, &str, f32, usize)]) {
        for (name, start, strength, controls) in runs {
            let found = self.latents(pipeline, &self.request(self.start(start, *strength), *controls));
            let expectations = if *controls > 0 { self.controls.as_ref().unwrap() } else { &self.model };
            assert_close(name, &found, &expectations.expected(&format!("{name}/latents")));
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

const PLAIN: [(&str, &str, f32, usize); 4] = [
    ("picture", "picture", 0.7, 0),
    ("picture_whole", "picture", 1.0, 0),
    ("inpaint", "inpaint", 1.0, 0),
    ("inpaint_part", "inpaint", 0.7, 0),
];
const NINE: [(&str, &str, f32, usize); 2] =
    [("inpaint_nine", "inpaint", 1.0, 0), ("inpaint_nine_part", "inpaint", 0.7, 0)];
const CONTROLLED: [(&str, &str, f32, usize); 4] = [
    ("control", "noise", 1.0, 1),
    ("control_two", "noise", 1.0, 2),
    ("control_picture", "picture", 0.7, 1),
    ("control_inpaint", "inpaint", 1.0, 2),
];
const CONTROLLED_NINE: [(&str, &str, f32, usize); 1] = [("control_inpaint_nine", "inpaint", 0.7, 1)];

fn compare_family(name: &str) {
    let family = Family::unpack(name);
    let pipeline = family.open().unwrap();
    family.compare(&pipeline, &PLAIN);
    if family.controls.is_some() {
        family.compare(&pipeline, &CONTROLLED);
    }
    family.become_inpaint_model();
    let pipeline = family.open().unwrap();
    family.compare(&pipeline, &NINE);
    if family.controls.is_some() {
        family.compare(&pipeline, &CONTROLLED_NINE);
    }
}

#[test]
fn pictures_of_pictures_with_stable_diffusion_1_5() {
    compare_family("sd15");
}

#[test]
fn pictures_of_pictures_with_stable_diffusion_2_1() {
    compare_family("sd21");
}

#[test]
fn pictures_of_pictures_with_stable_diffusion_xl() {
    compare_family("sdxl");
}

/// The path of other devices, in a format that has no kernels of ours.
#[test]
fn operations_of_other_devices_give_the_same() {
    let family = Family::unpack("sdxl");
    let pool = Pool::new(1).unwrap();
    let pipeline = Pipeline::load(
        &family.model.files(),
        &family.control_files(),
        Compute::HOST.in_dtype(DType::F64),
        pool,
    );
    let pipeline = Pipeline { vae_dtype: DType::F32, ..pipeline.unwrap() };
    family.compare(&pipeline, &PLAIN);
    family.compare(&pipeline, &CONTROLLED);
}

#[test]
fn a_control_net_adds_what_diffusers_adds() {
    for name in ["sd15", "sdxl"] {
        let family = Family::unpack(name);
        let pipeline = family.open().unwrap();
        let fixture = family.controls.as_ref().unwrap();
        let tensor = |name: &str| fixture.tensor(&format!("residuals/{name}"));
        let edge = f64::from(EDGE);
        let text = TextConditioning {
            context: tensor("context"),
            pooled: tensor("pooled"),
            size: [edge, edge, 0.0, 0.0, edge, edge],
        };
        let network = &pipeline.controls[&ControlKind::Scribble];
        let hint = network.embed(tensor("hint"), 1).unwrap();
        let latents = FeatureMap::from_channels_first(tensor("latents")).unwrap();
        let conditioning = network.prepare(&text).unwrap();
        let found = network.forward(&latents, TIMESTEP, &hint, &conditioning, f64::from(SCALES[0])).unwrap();
        let map = |map: &FeatureMap| values(&map.to_channels_first().unwrap());
        assert_close("middle", &map(&found.middle), &values(tensor("middle")));
        for (index, skip) in found.skips.iter().enumerate() {
            assert_close(&format!("skip {index}"), &map(skip), &values(tensor(&format!("skip_{index}"))));
        }
        assert_eq!(found.skips.len(), 6);
    }
}

#[test]
fn large_pictures_are_taken_in_tiles_as_diffusers_takes_them() {
    let family = Family::unpack("sd15");
    let mut vae = family.open().unwrap().vae;
    (vae.tile_edge, vae.max_whole_pixels) = (16, 32 * 32);
    let tensor = |name: &str| family.model.tensor(&format!("tiles/{name}"));
    let encoded = vae.encode(tensor("pixels")).unwrap();
    assert_close("mean", &values(&encoded.mean), &values(tensor("mean")));
    assert_close("log variance", &values(&encoded.log_variance), &values(tensor("log_variance")));
    let decoded = vae.decode(tensor("latents")).unwrap();
    assert_close("decoded", &values(&decoded), &values(tensor("decoded")));
    vae.max_whole_pixels = 1 << 20;
    let whole = vae.decode(tensor("latents")).unwrap();
    assert!(length_error(&values(&whole), &values(tensor("decoded"))) > 1e-3);
}

#[test]
fn what_is_not_made_anew_stays_to_the_bit() {
    let family = Family::unpack("sd15");
    let pipeline = family.open().unwrap();
    let picture = family.picture("picture").resize(EDGE, EDGE, Filter::Lanczos);
    let mask = Mask::from_fn(EDGE, EDGE, |x, y| x > 12 && y < 9);
    let start = Start::Inpaint { picture: picture.clone(), mask: mask.clone(), strength: 1.0 };
    let made = pipeline.generate(&family.request(start, 0), &mut keep_going).unwrap();
    let pixels = made.pixels().chunks_exact(3).zip(picture.pixels().chunks_exact(3)).zip(mask.anew());
    let mut changed = 0;
    for ((made, known), anew) in pixels {
        assert!(*anew || made == known);
        changed += usize::from(made != known);
    }
    assert!(changed > 100, "{changed} pixels changed");

    let small = picture.crop(3, 5, 20, 18);
    let pads = Pads { left: 7, right: 5, top: 0, bottom: 14 };
    let request = family.request(Start::Uncrop { picture: small.clone(), pads }, 0);
    let made = pipeline.generate(&request, &mut keep_going).unwrap();
    assert_eq!((made.width(), made.height()), (EDGE, EDGE));
    assert_eq!(made.crop(7, 0, 20, 18), small);
    assert_eq!(made, pipeline.generate(&request, &mut keep_going).unwrap());
    assert_ne!(made, pipeline.generate(&Generate { seed: 9, ..request }, &mut keep_going).unwrap());
}

#[test]
fn control_pictures_are_made_of_others() {
    let family = Family::unpack("sd15");
    let pipeline = family.open().unwrap();
    let photo = RgbPicture::from_fn(60, 44, |x, y| match (x / 20 + y / 15) % 2 {
        0 => [230, 200, (4 * x) as u8],
        _ => [10, (5 * y) as u8, 60],
    });
    let seen = photo.resize(EDGE, EDGE, Filter::Lanczos);
    for (kind, prepared) in [
        (ControlKind::Scribble, preprocess::scribble(&seen)),
        (ControlKind::Canny, preprocess::canny(&seen, CannyThresholds::CONTROL)),
    ] {
        assert!(prepared.pixels().contains(&255), "{kind}: nothing is drawn");
        let made = |picture: &RgbPicture, is_prepared: bool| {
            let control = Control { kind, picture: picture.clone(), is_prepared, scale: 1.0 };
            let request = Generate { controls: vec![control], ..family.request(Start::Noise, 0) };
            pipeline.generate(&request, &mut keep_going).unwrap()
        };
        assert_eq!(made(&photo, false), made(&prepared, true));
        assert_ne!(made(&photo, true), made(&prepared, true));
    }
}

#[test]
fn depths_are_estimated_where_the_control_net_brings_an_estimator() {
    let family = Family::unpack("sd15");
    let open = || {
        let files = ModelFiles::folder(family.control_folder(ControlKind::Canny));
        let controls = [(ControlKind::Depth, files)];
        Pipeline::open_with_controls(&family.model.files(), &controls, DeviceKind::Cpu, 1).unwrap()
    };
    let request = |picture: RgbPicture, is_prepared: bool| {
        let control = Control { kind: ControlKind::Depth, picture, is_prepared, scale: 1.0 };
        Generate { controls: vec![control], ..family.request(Start::Noise, 0) }
    };
    let photo = family.picture("picture");
    assert_eq!(
        refused(&open(), &request(photo.clone(), false)),
        "control is a picture that is not prepared, but it must be a depth map already: this model has no \
         depth_estimator"
    );
    family.add_depth_estimator(ControlKind::Canny);
    let pipeline = open();
    let seen = photo.resize(EDGE, EDGE, Filter::Lanczos);
    let map = pipeline.depth.as_ref().unwrap().estimate(&seen).unwrap();
    let made = |request: Generate| pipeline.generate(&request, &mut keep_going).unwrap();
    assert_eq!(made(request(photo.clone(), false)), made(request(map.clone(), true)));
    assert_ne!(made(request(photo, true)), made(request(map, true)));
}

#[track_caller]
fn refused(pipeline: &Pipeline, request: &Generate) -> String {
    let error = pipeline.generate(request, &mut keep_going).unwrap_err();
    assert_eq!(error.reason(), "invalid", "{error}");
    error.to_string()
}

#[test]
fn pictures_and_masks_that_make_no_sense_are_refused() {
    let family = Family::unpack("sd15");
    let pipeline = family.open().unwrap();
    let picture = || family.picture("picture");
    let refuse = |start: Start| refused(&pipeline, &family.request(start, 0));
    for (strength, says) in [
        (0.0, "strength is 0, but it must be above 0, to 1"),
        (-1.0, "strength is -1, but it must be above 0, to 1"),
        (1.5, "strength is 1.5, but it must be above 0, to 1"),
        (f32::NAN, "strength is NaN, but it must be above 0, to 1"),
        (0.1, "strength is 0.1, but it must be 0.200 or more, for one step"),
    ] {
        assert_eq!(refuse(Start::Picture { picture: picture(), strength }), says);
    }
    let inpaint = |mask: Mask| Start::Inpaint { picture: picture(), mask, strength: 1.0 };
    assert_eq!(
        refuse(inpaint(Mask::from_fn(28, 40, |_, _| true))),
        "mask is 28×40, but it must be as large as its picture, 40×28"
    );
    assert!(refuse(inpaint(Mask::from_fn(40, 28, |_, _| false))).starts_with("mask is black everywhere"));
    let uncrop = |pads: Pads| Start::Uncrop { picture: picture(), pads };
    assert!(refuse(uncrop(Pads::default())).starts_with("pads is 0 on every side"));
    assert_eq!(
        refuse(uncrop(Pads { left: 8, ..Pads::default() })),
        "width is 32, but it must be 48, the picture's 40 and the pads' 8 and 0"
    );
    assert!(refuse(uncrop(Pads { left: u32::MAX, right: u32::MAX, top: 1, bottom: 1 })).contains("width"));
    let absurd = Generate { width: 1 << 30, ..family.request(family.start("picture", 0.5), 0) };
    assert!(refused(&pipeline, &absurd).starts_with("width"));
    family.become_inpaint_model();
    let painter = family.open().unwrap();
    assert!(refused(&painter, &family.request(Start::Noise, 0)).contains("this model paints into pictures"));
    assert!(!painter.can(ModelTask::TextToImage) && painter.can(ModelTask::Uncrop));
    assert!(pipeline.can(ModelTask::TextToImage) && pipeline.can(ModelTask::Scribble));
    // The pipeline works on after all that.
    pipeline.generate(&family.request(Start::Noise, 2), &mut keep_going).unwrap();
}

#[test]
fn controls_that_make_no_sense_are_refused() {
    let family = Family::unpack("sd15");
    let pipeline = family.open().unwrap();
    let refuse = |change: &dyn Fn(&mut Control)| {
        let mut request = family.request(Start::Noise, 1);
        change(&mut request.controls[0]);
        refused(&pipeline, &request)
    };
    assert_eq!(
        refuse(&|control| control.kind = ControlKind::Depth),
        "control is depth, but it must be one of scribble, canny"
    );
    for scale in [0.0, -1.0, 2.5, f32::NAN, f32::INFINITY] {
        assert!(refuse(&|control| control.scale = scale).starts_with("scale is"));
    }
    let mut request = family.request(Start::Noise, 1);
    request.controls = vec![request.controls[0].clone(); MAX_CONTROLS + 1];
    assert_eq!(refused(&pipeline, &request), "controls is 5, but it must be 4 at most");
    let bare = Pipeline::open(&family.model.files(), DeviceKind::Cpu, 1).unwrap();
    assert_eq!(
        refused(&bare, &family.request(Start::Noise, 1)),
        "control is scribble, but it must be absent: this model has no ControlNets"
    );
}

#[test]
fn control_nets_of_other_models_are_refused() {
    let (family, other) = (Family::unpack("sd15"), Family::unpack("sdxl"));
    let open = |files: ModelFiles| {
        Pipeline::open_with_controls(
            &family.model.files(),
            &[(ControlKind::Canny, files)],
            DeviceKind::Cpu,
            1,
        )
        .err()
        .unwrap()
    };
    let error = open(ModelFiles::folder(other.control_folder(ControlKind::Canny)));
    assert!(error.to_string().contains("trained for another model"), "{error}");
    assert_eq!(open(family.model.files()).reason(), "missing_file");
    let folder = family.control_folder(ControlKind::Canny);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    for (old, new, reason) in [
        ("\"ControlNetModel\"", "\"T2IAdapter\"", "unknown_architecture"),
        ("\"global_pool_conditions\": false", "\"global_pool_conditions\": true", "unknown_architecture"),
        ("order\": \"rgb\"", "order\": \"bgr\"", "unknown_architecture"),
        ("\"conditioning_channels\": 3", "\"conditioning_channels\": 1", "bad_config"),
        ("    6\n", "    6, 6\n", "bad_config"),
    ] {
        let changed = config.replace(old, new);
        assert_ne!(config, changed, "{old}");
        std::fs::write(folder.join("config.json"), changed).unwrap();
        let error = open(ModelFiles::folder(&folder));
        assert_eq!(error.reason(), reason, "{error}");
    }
}
