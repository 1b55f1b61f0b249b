//! CLIP's byte-level tokenizer: a text becomes exactly one window of token ids.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;
use tokenizers::{AddedToken, Tokenizer};

use crate::loader::{LoadError, MAX_TABLE_BYTES, ModelFiles};

/// The longest text that is tokenized, in bytes; a CLIP window of 77 tokens holds about 400.
pub const MAX_PROMPT_BYTES: usize = 4096;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{file} is no tokenizer: {detail}")]
    Malformed { file: String, detail: String },
    #[error("{file} has no token `{token}`, so it is not a CLIP tokenizer")]
    MissingToken { file: String, token: String },
}

/// Turns texts into windows of token ids.
pub(crate) struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    padding: u32,
    window: usize,
}

impl ClipTokenizer {
    /// Opens the tokenizer in a folder of the model: `tokenizer.json`, or `vocab.json` with
    /// `merges.txt`. `window` is the number of positions of the text model.
    pub(crate) fn open(files: &ModelFiles, folder: &str, window: usize) -> Result<Self, LoadError> {
        let inside =
            |file: &str| if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
        let whole = inside("tokenizer.json");
        let (source, definition) = if files.contains(&whole) || !files.contains(&inside("vocab.json")) {
            let bytes = files.read(&whole, MAX_TABLE_BYTES)?;
            (whole, bytes)
        } else {
            let vocabulary = files.read(&inside("vocab.json"), MAX_TABLE_BYTES)?;
            let merges = files.read(&inside("merges.txt"), MAX_TABLE_BYTES)?;
            (
                inside("vocab.json"),
                definition(&vocabulary, &merges)
                    .map_err(|error| files.bad_config(&inside("vocab.json"), error.to_string()))?,
            )
        };
        let file = format!("{}/{source}", files.name());
        let mut tokenizer = Tokenizer::from_bytes(definition)
            .map_err(|error| TokenizerError::Malformed { file: file.clone(), detail: error.to_string() })?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TokenizerError::Malformed { file: file.clone(), detail: error.to_string() })?;
        let token = |text: &str| {
            tokenizer
                .token_to_id(text)
                .ok_or_else(|| TokenizerError::MissingToken { file: file.clone(), token: text.to_owned() })
        };
        let (start, end) = (token(START)?, token(END)?);
        let padding_text = padding_token(files, &inside)?.unwrap_or_else(|| END.to_owned());
        let padding = token(&padding_text)?;
        // As in transformers: where the padding is a character, it is a token of its own in a text too.
        tokenizer.add_special_tokens(&[AddedToken::from(padding_text, true)]);
        if window < 2 {
            return Err(TokenizerError::Malformed {
                file,
                detail: format!("a window of {window} tokens holds no text"),
            }
            .into());
        }
        Ok(Self { tokenizer, start, end, padding, window })
    }

    /// How many tokens of a text fit into a window.
    pub(crate) fn room(&self) -> usize {
        (self.window - 2).max(1)
    }

    /// All ids of a text, without start and end. Never fails on any text of at most
    /// [`MAX_PROMPT_BYTES`]; what is longer is cut there first.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<u32>, candle_core::Error> {
        let text = &text[..text.floor_char_boundary(MAX_PROMPT_BYTES)];
        let encoding =
            self.tokenizer.encode(text, false).map_err(|error| candle_core::Error::Msg(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// One window: a start, as many ids as fit, an end, and padding.
    pub(crate) fn window(&self, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let mut window = self.unpadded(ids);
        window.resize(self.window, self.padding);
        window
    }

    fn unpadded(&self, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let mut window = Vec::with_capacity(self.window);
        window.push(self.start);
        window.extend(ids.into_iter().take(self.window - 2));
        window.push(self.end);
        window
    }

    /// As [`Self::encode`], only as far as the end token.
    pub(crate) fn encode_unpadded(&self, text: &str) -> Result<Vec<u32>, candle_core::Error> {
        Ok(self.unpadded(self.ids(text)?))
    }

    /// The window of a text, which is cut off where it is longer.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, candle_core::Error> {
        Ok(self.window(self.ids(text)?))
    }
}

/// The token that fills the window, where the folder names one.
fn padding_token(files: &ModelFiles, inside: &impl Fn(&str) -> String) -> Result<Option<String>, LoadError> {
    #[derive(Deserialize)]
    struct SpecialTokens {
        pad_token: Option<Token>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Plain(String),
        Described { content: String },
    }
    for file in ["tokenizer_config.json", "special_tokens_map.json"].map(inside) {
        if files.contains(&file) {
            match files.config::<SpecialTokens>(&file)?.pad_token {
                Some(Token::Plain(text) | Token::Described { content: text }) => return Ok(Some(text)),
                None => {}
            }
        }
    }
    Ok(None)
}

/// The `tokenizer.json` that says the same as CLIP's `vocab.json` and `merges.txt`.
fn definition(vocabulary: &[u8], merges: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    use serde::de::Error as _;
    let vocabulary: HashMap<String, u32> = serde_json::from_slice(vocabulary)?;
    let merges = std::str::from_utf8(merges).map_err(serde_json::Error::custom)?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
    let special = |text: &str| -> Result<_, serde_json::Error> {
        let id =
            vocabulary.get(text).ok_or_else(|| serde_json::Error::custom(format!("no token `{text}`")))?;
        Ok(
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}),
        )
    };
    let added = [special(START)?, special(END)?];
    serde_json::to_vec(&json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
                "behavior": "Removed",
                "invert": true,
            },
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": false,
            "byte_fallback": false,
            "vocab": vocabulary,
            "merges": merges,
        },
    }))
}
