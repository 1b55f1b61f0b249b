//! The names of tensors in single-file checkpoints, as CompVis' and Stability AI's training code gave
//! them, and what they are called in the layout of diffusers.

/// A tensor of the checkpoint, or a part of one, by its name in the layout of diffusers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorView {
    pub(crate) name: String,
    /// Which of how many equal shares of its rows.
    pub(crate) share: Option<(usize, usize)>,
    /// Whether rows and columns change places.
    pub(crate) transposed: bool,
}

impl TensorView {
    fn whole(name: impl Into<String>) -> Vec<Self> {
        vec![Self { name: name.into(), share: None, transposed: false }]
    }
}

/// Removes a number and the separator after it.
fn take_number(text: &str, separator: char) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once(separator)?;
    Some((number.parse().ok()?, rest))
}

/// A name below `model.diffusion_model`, as diffusers has it.
///
/// `layers`: residual blocks of each down block. `separator`: what stands between the parts of a name;
/// kohya's LoRA files write `_` for `.`.
pub(crate) fn unet_name(name: &str, separator: char, layers: usize) -> Option<String> {
    let dotted = |text: &str| text.replace('.', &separator.to_string());
    let below = |head: &str| name.strip_prefix(&dotted(head));
    const SINGLE: [(&str, &str); 7] = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ];
    if let Some((rest, to)) = SINGLE.iter().find_map(|(from, to)| Some((below(from)?, to))) {
        return Some(format!("{}{rest}", dotted(to)));
    }
    let residual = |rest: &str| residual_name(rest, separator);
    if let Some(rest) = below("input_blocks.") {
        let (index, rest) = take_number(rest, separator)?;
        let (kind, rest) = take_number(rest, separator)?;
        let (block, layer) = (index.checked_sub(1)? / (layers + 1), (index - 1) % (layers + 1));
        return match (kind, rest.strip_prefix(&dotted("op."))) {
            (0, Some(rest)) => {
                Some(format!("{}{rest}", dotted(&format!("down_blocks.{block}.downsamplers.0.conv."))))
            }
            (0, None) => Some(dotted(&format!("down_blocks.{block}.resnets.{layer}.")) + &residual(rest)),
            (1, _) => Some(dotted(&format!("down_blocks.{block}.attentions.{layer}.")) + rest),
            _ => None,
        };
    }
    if let Some(rest) = below("middle_block.") {
        let (index, rest) = take_number(rest, separator)?;
        return match index {
            0 => Some(dotted("mid_block.resnets.0.") + &residual(rest)),
            1 => Some(dotted("mid_block.attentions.0.") + rest),
            2 => Some(dotted("mid_block.resnets.1.") + &residual(rest)),
            _ => None,
        };
    }
    let (index, rest) = take_number(below("output_blocks.")?, separator)?;
    let (kind, rest) = take_number(rest, separator)?;
    let (block, layer) = (index / (layers + 1), index % (layers + 1));
    match (kind, rest.strip_prefix(&dotted("conv."))) {
        (0, _) => Some(dotted(&format!("up_blocks.{block}.resnets.{layer}.")) + &residual(rest)),
        (1 | 2, Some(rest)) => Some(dotted(&format!("up_blocks.{block}.upsamplers.0.conv.")) + rest),
        (1, None) => Some(dotted(&format!("up_blocks.{block}.attentions.{layer}.")) + rest),
        _ => None,
    }
}

fn residual_name(name: &str, separator: char) -> String {
    const PARTS: [(&str, &str); 6] = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("emb_layers.1.", "time_emb_proj."),
        ("skip_connection.", "conv_shortcut."),
    ];
    let dotted = |text: &str| text.replace('.', &separator.to_string());
    let found = PARTS.iter().find_map(|(from, to)| Some(dotted(to) + name.strip_prefix(&dotted(from))?));
    found.unwrap_or_else(|| name.to_owned())
}

/// A name below `first_stage_model`. `levels`: resolutions of the autoencoder.
pub(super) fn autoencoder_name(name: &str, levels: usize) -> Option<String> {
    let (side, rest) = match name.split_once('.')? {
        ("quant_conv" | "post_quant_conv", _) => return Some(name.to_owned()),
        (side @ ("encoder" | "decoder"), rest) => (side, rest),
        _ => return None,
    };
    const PARTS: [(&str, &str); 9] = [
        ("norm_out.", "conv_norm_out."),
        ("mid.block_1.", "mid_block.resnets.0."),
        ("mid.block_2.", "mid_block.resnets.1."),
        ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
        ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
        ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
        ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
        ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
        ("conv_", "conv_"),
    ];
    let renamed = PARTS.iter().find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)));
    let inner = match renamed {
        Some(name) => name,
        None => {
            let (direction, rest) = rest.split_once('.')?;
            let (level, rest) = take_number(rest, '.')?;
            let block = if direction == "up" { levels.checked_sub(level + 1)? } else { level };
            let (kind, rest) = rest.split_once('.')?;
            match kind {
                "block" => format!("{direction}_blocks.{block}.resnets.{rest}"),
                "downsample" => format!("{direction}_blocks.{block}.downsamplers.0.{rest}"),
                "upsample" => format!("{direction}_blocks.{block}.upsamplers.0.{rest}"),
                _ => return None,
            }
        }
    };
    Some(format!("{side}.{}", inner.replace("nin_shortcut.", "conv_shortcut.")))
}

/// A name of OpenCLIP's text tower. `projects`: whether the model uses its projection.
pub(super) fn open_clip_views(name: &str, projects: bool) -> Vec<TensorView> {
    const SINGLE: [(&str, &str); 4] = [
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.weight", "text_model.final_layer_norm.weight"),
        ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ];
    if let Some((_, to)) = SINGLE.iter().find(|(from, _)| *from == name) {
        return TensorView::whole(*to);
    }
    if name == "text_projection" && projects {
        return vec![TensorView { name: "text_projection.weight".to_owned(), share: None, transposed: true }];
    }
    let Some((layer, rest)) =
        name.strip_prefix("transformer.resblocks.").and_then(|rest| take_number(rest, '.'))
    else {
        return Vec::new();
    };
    let layer = format!("text_model.encoder.layers.{layer}.");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        let share = |(index, part): (usize, &str)| TensorView {
            name: format!("{layer}self_attn.{part}_proj.{kind}"),
            share: Some((index, 3)),
            transposed: false,
        };
        return ["q", "k", "v"].into_iter().enumerate().map(share).collect();
    }
    const PARTS: [(&str, &str); 5] = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let found = PARTS.iter().find_map(|(from, to)| Some(format!("{layer}{to}{}", rest.strip_prefix(from)?)));
    found.map(TensorView::whole).unwrap_or_default()
}

/// A view of a whole tensor.
pub(super) fn whole(name: Option<String>) -> Vec<TensorView> {
    name.map(TensorView::whole).unwrap_or_default()
}
