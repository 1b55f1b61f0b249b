//! Secret phrases: BIP39 words, and Substrate's way from their entropy to a seed.

use bip39::{Language, Mnemonic};
use rand::TryRngCore;
use zeroize::Zeroizing;

use super::IdentityError;

/// Twelve words, as Bittensor's own wallet makes them.
const NEW_ENTROPY: usize = 16;
/// The longest phrase has 24 words of at most 8 letters; more is not worth parsing.
const PHRASE: usize = 1024;
const ROUNDS: u32 = 2048;

/// A new phrase from the operating system's randomness.
pub(super) fn generate() -> Zeroizing<String> {
    let mut entropy = Zeroizing::new([0; NEW_ENTROPY]);
    rand::rngs::OsRng.try_fill_bytes(&mut *entropy).expect("the operating system gives randomness");
    let mnemonic = Mnemonic::from_entropy_in(Language::English, &*entropy).expect("16 bytes are 12 words");
    Zeroizing::new(mnemonic.to_string())
}

/// The seed that a phrase stands for. Unlike plain BIP39, Substrate stretches the entropy behind the words
/// and not the words themselves, and keeps the first half.
pub(super) fn seed(phrase: &str) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    if phrase.len() > PHRASE {
        return Err(IdentityError::Phrase("it is too long".into()));
    }
    let mnemonic = Mnemonic::parse_in_normalized(Language::English, phrase)
        .map_err(|e| IdentityError::Phrase(explain(e)))?;
    let (entropy, length) = mnemonic.to_entropy_array();
    let entropy = Zeroizing::new(entropy);
    let mut stretched = Zeroizing::new([0; 64]);
    pbkdf2::pbkdf2_hmac::<pbkdf2::sha2::Sha512>(&entropy[..length], b"mnemonic", ROUNDS, &mut *stretched);
    let mut seed = Zeroizing::new([0; 32]);
    seed.copy_from_slice(&stretched[..32]);
    Ok(seed)
}

/// What is wrong, without any of the words.
fn explain(error: bip39::Error) -> String {
    match error {
        bip39::Error::BadWordCount(count) => {
            format!("it has {count} words instead of 12, 15, 18, 21 or 24")
        }
        bip39::Error::UnknownWord(index) => {
            format!("word {} is not in the English list (all lower case)", index + 1)
        }
        bip39::Error::InvalidChecksum => {
            "its checksum is wrong: a word is another, or in another place".into()
        }
        other => other.to_string(),
    }
}
