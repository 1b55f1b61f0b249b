//! Kandinsky models and requests that must be refused, or give no picture.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::tests::{Fixture, PRIOR, keep_going, open, picture, request, write};
use super::*;
use crate::device::DeviceKind;
use crate::diffusion::Mask;
use crate::placement::Compute;

#[track_caller]
fn assert_invalid(pipeline: &KandinskyPipeline, request: &Generate, expected: &str) {
    match pipeline.generate(request, &mut keep_going) {
        Err(GenerateError::Invalid { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn requests_that_the_networks_cannot_take_are_refused() {
    let (decoder, inpainter) = (open("decoder", 1), open("inpaint", 1));
    let of_picture = |strength| Start::Picture { picture: picture(8, 8), strength };
    for (expected, request) in [
        ("width", Generate { width: 20, ..request() }),
        ("height", Generate { height: 0, ..request() }),
        ("height", Generate { height: 4096, ..request() }),
        ("steps", Generate { steps: 0, ..request() }),
        ("steps", Generate { steps: 1001, ..request() }),
        ("guidance", Generate { guidance: f32::NAN, ..request() }),
        ("guidance", Generate { guidance: 51.0, ..request() }),
        ("prompt", Generate { prompt: "a".repeat(MAX_PROMPT_BYTES + 1), ..request() }),
        ("strength", Generate { start: of_picture(0.0), ..request() }),
        ("strength", Generate { start: of_picture(0.2), ..request() }),
        ("strength", Generate { start: of_picture(f32::NAN), ..request() }),
    ] {
        assert_invalid(&decoder, &request, expected);
    }
    assert!(decoder.can(ModelTask::TextToImage) && !inpainter.can(ModelTask::TextToImage));
    assert_invalid(&inpainter, &request(), "start");
    assert_invalid(&inpainter, &Generate { start: of_picture(0.5), ..request() }, "start");
    let mask = Mask::from_fn(8, 9, |_, _| true);
    let start = Start::Inpaint { picture: picture(8, 8), mask, strength: 1.0 };
    assert_invalid(&inpainter, &Generate { start, ..request() }, "mask");
    for settings in [
        PriorSettings { steps: 1, guidance: 1.0 },
        PriorSettings { steps: 1001, guidance: 1.0 },
        PriorSettings { steps: 25, guidance: -1.0 },
    ] {
        let refused = open("decoder", 1).with_prior(settings);
        assert!(matches!(refused, Err(GenerateError::Invalid { .. })), "{settings:?}");
    }
}

#[track_caller]
fn assert_refused<T>(opened: Result<T, LoadError>, reason: &str, says: &str) {
    match opened {
        Ok(_) => panic!("a model that should be refused as {reason} was opened"),
        Err(error) => {
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

fn open_prior(fixture: &Fixture) -> LoadResult<Prior> {
    Prior::load(Part::whole(&fixture.files()), &Compute::HOST)
}

fn open_decoder(fixture: &Fixture) -> LoadResult<Decoder> {
    Decoder::load(Part::whole(&fixture.files()), &Compute::HOST)
}

#[test]
fn priors_that_are_not_built_are_refused() {
    let prior = "prior/config.json";
    let scheduler = "scheduler/scheduler_config.json";
    let text = "text_encoder/config.json";
    let image = "image_encoder/config.json";
    for (path, old, new, reason, says) in [
        (
            prior,
            "\"PriorTransformer\"",
            "\"Transformer2DModel\"",
            "unknown_architecture",
            "Transformer2DModel",
        ),
        (prior, "\"prd\"", "null", "unknown_architecture", "added_emb_type"),
        (
            prior,
            "\"norm_in_type\": null",
            "\"norm_in_type\": \"batch\"",
            "unknown_architecture",
            "norm_in_type",
        ),
        (
            prior,
            "\"additional_embeddings\": 4",
            "\"additional_embeddings\": 5",
            "unknown_architecture",
            "additional",
        ),
        (prior, "\"num_layers\": 3", "\"num_layers\": 4000000000", "bad_config", "num_layers"),
        (prior, "\"num_layers\": 3", "\"num_layers\": 4", "missing_tensor", "transformer_blocks.3"),
        (prior, "\"attention_head_dim\": 8", "\"attention_head_dim\": 0", "bad_config", "attention_head_dim"),
        (prior, "\"attention_head_dim\": 8", "\"attention_head_dim\": 9", "wrong_shape", "18"),
        (prior, "\"num_embeddings\": 77", "\"num_embeddings\": 70", "bad_config", "num_embeddings"),
        (
            prior,
            "\"embedding_proj_dim\": null",
            "\"embedding_proj_dim\": 16",
            "bad_config",
            "text_encoder/config.json is not as expected: its widths",
        ),
        (scheduler, "UnCLIPScheduler", "DDIMScheduler", "bad_config", "DDIMScheduler"),
        (scheduler, "fixed_small_log", "learned_range", "bad_config", "learned_range"),
        (
            scheduler,
            "\"clip_sample_range\": 5.0",
            "\"clip_sample_range\": -5.0",
            "bad_config",
            "clip_sample_range",
        ),
        (scheduler, "\"num_train_timesteps\": 1000", "\"num_train_timesteps\": 1", "bad_config", "num_train"),
        (
            text,
            "\"projection_dim\": 12",
            "\"projection_dim\": 16",
            "bad_config",
            "text_encoder/config.json is not as expected: its widths",
        ),
        (image, "\"projection_dim\": 12", "\"projection_dim\": 16", "bad_config", "projection_dim"),
        (image, "\"image_size\": 28", "\"image_size\": 280000", "bad_config", "image_size"),
    ] {
        let changed = Fixture::unpack("prior").replaced(path, old, new);
        assert_refused(open_prior(&changed), reason, says);
    }
}

#[test]
fn decoders_that_are_not_built_are_refused() {
    let unet = "unet/config.json";
    let movq = "movq/config.json";
    let scheduler = "scheduler/scheduler_config.json";
    for (path, old, new, reason, says) in [
        (unet, "\"UNet2DConditionModel\"", "\"Kandinsky3UNet\"", "unknown_architecture", "Kandinsky3UNet"),
        (unet, "\"image\"", "\"image_hint\"", "unknown_architecture", "image_hint"),
        (unet, "\"image_proj\"", "\"text_image_proj\"", "unknown_architecture", "text_image_proj"),
        (unet, "\"scale_shift\"", "\"default\"", "unknown_architecture", "resnet_time_scale_shift"),
        (unet, "\"ResnetDownsampleBlock2D\"", "\"DownBlock2D\"", "unknown_architecture", "DownBlock2D"),
        (unet, "\"layers_per_block\": 2", "\"layers_per_block\": 0", "bad_config", "layers_per_block"),
        (unet, "\"layers_per_block\": 2", "\"layers_per_block\": 3", "missing_tensor", "resnets.2"),
        (unet, "\"attention_head_dim\": 8", "\"attention_head_dim\": 5", "bad_config", "attention_head_dim"),
        (
            unet,
            "\"attention_head_dim\": 8",
            "\"attention_head_dim\": [8, 8]",
            "bad_config",
            "attention_head_dim",
        ),
        (unet, "\"block_out_channels\": [", "\"block_out_channels\": [16,", "bad_config", "differ in length"),
        (unet, "\"encoder_hid_dim\": 12", "\"encoder_hid_dim\": null", "bad_config", "encoder_hid_dim"),
        (unet, "\"encoder_hid_dim\": 12", "\"encoder_hid_dim\": 13", "wrong_shape", "13"),
        (unet, "\"in_channels\": 4", "\"in_channels\": 5", "bad_config", "in_channels"),
        (unet, "\"out_channels\": 8", "\"out_channels\": 4", "bad_config", "out_channels"),
        (unet, "\"norm_num_groups\": 4", "\"norm_num_groups\": 0", "unsuitable_weights", "groups"),
        (movq, "\"VQModel\"", "\"AutoencoderKL\"", "unknown_architecture", "AutoencoderKL"),
        (movq, "\"spatial\"", "\"group\"", "unknown_architecture", "norm_type"),
        (movq, "\"vq_embed_dim\": 4", "\"vq_embed_dim\": 8", "bad_config", "vq_embed_dim"),
        (movq, "\"AttnUpDecoderBlock2D\"", "\"UpBlock2D\"", "unknown_architecture", "UpBlock2D"),
        (scheduler, "DDPMScheduler", "HeunDiscreteScheduler", "bad_config", "HeunDiscreteScheduler"),
    ] {
        let changed = Fixture::unpack("decoder").replaced(path, old, new);
        assert_refused(open_decoder(&changed), reason, says);
    }
}

#[test]
fn a_prior_of_another_width_is_refused() {
    // All of the prior's parts agree on 12; the decoder would take 10.
    let decoder = Fixture::unpack("decoder").replaced(
        "unet/config.json",
        "\"encoder_hid_dim\": 12",
        "\"encoder_hid_dim\": 10",
    );
    let weights = decoder.path("unet/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let narrowed = tensors.iter().map(|(name, view)| {
        let is_narrowed =
            ["add_embedding.image_proj.weight", "encoder_hid_proj.image_embeds.weight"].contains(&name);
        let shape = if is_narrowed { vec![view.shape()[0], 10] } else { view.shape().to_vec() };
        let length = 2 * shape.iter().product::<usize>();
        (name.to_owned(), TensorView::new(Dtype::F16, shape, &view.data()[..length]).unwrap())
    });
    write(&weights, &safetensors::serialize(narrowed, None).unwrap());
    let prior = Fixture::unpack("prior");
    let opened = KandinskyPipeline::open(&prior.files(), &decoder.files(), DeviceKind::Cpu, 1);
    assert_refused(opened, "bad_config", "encoder_hid_dim is 10");
}

#[test]
fn missing_files_are_named() {
    for (path, reason) in [
        ("prior/config.json", "missing_file"),
        ("tokenizer/vocab.json", "missing_file"),
        ("scheduler/scheduler_config.json", "missing_file"),
        ("image_encoder/config.json", "missing_file"),
        ("image_encoder/model.safetensors", "missing_weights"),
        ("prior/diffusion_pytorch_model.safetensors", "missing_weights"),
    ] {
        let prior = Fixture::unpack("prior");
        std::fs::remove_file(prior.path(path)).unwrap();
        assert_refused(open_prior(&prior), reason, path.split('/').next().unwrap());
    }
    let folder = ModelFiles::folder(tempfile::tempdir().unwrap().path());
    let opened = KandinskyPipeline::open_folder(&folder, DeviceKind::Cpu, 1);
    assert_refused(opened, "missing_file", "prior_prior/config.json");
}

#[test]
fn weights_that_are_not_finite_give_no_picture() {
    let spoil = |mut bytes: Vec<u8>| {
        let end = bytes.len();
        bytes[end - 2048..].fill(0x7e);
        bytes
    };
    let weights = "diffusion_pytorch_model.safetensors";
    let good = Fixture::unpack("prior");
    let bad = Fixture::unpack("decoder").changed(&format!("unet/{weights}"), spoil);
    let pipeline = KandinskyPipeline::open(&good.files(), &bad.files(), DeviceKind::Cpu, 1).unwrap();
    let error = pipeline.with_prior(PRIOR).unwrap().generate(&request(), &mut keep_going).unwrap_err();
    assert_eq!(error.reason(), "not_finite", "{error}");

    let good = Fixture::unpack("decoder");
    let bad = Fixture::unpack("prior").changed(&format!("prior/{weights}"), spoil);
    let pipeline = KandinskyPipeline::open(&bad.files(), &good.files(), DeviceKind::Cpu, 1).unwrap();
    let error = pipeline.with_prior(PRIOR).unwrap().generate(&request(), &mut keep_going).unwrap_err();
    assert_eq!(error.reason(), "not_finite", "{error}");

    let bad = Fixture::unpack("prior").changed("image_encoder/model.safetensors", |mut bytes| {
        let start = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
        bytes[start..].fill(0x7e);
        bytes
    });
    assert_refused(open_prior(&bad), "unsuitable_weights", "not finite");
}
