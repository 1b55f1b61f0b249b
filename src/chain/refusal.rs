//! Why a chain refuses an extrinsic, by the names of subtensor's runtime.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($($name:ident: $passes:literal, $text:literal;)*) => {
        /// A refusal by the name that subtensor's runtime uses, as the text form has it.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $(#[doc = $text] $name,)*
            /// A name that this version of Argus does not know.
            Other(String),
        }

        impl Refusal {
            /// The runtime's name of it.
            pub fn name(&self) -> &str {
                match self {
                    $(Refusal::$name => stringify!($name),)*
                    Refusal::Other(name) => name,
                }
            }

            /// What it means and what to do.
            pub fn explanation(&self) -> &'static str {
                match self {
                    $(Refusal::$name => $text,)*
                    Refusal::Other(_) => "this version of Argus does not know that refusal",
                }
            }

            /// Whether the same call can pass later without anybody changing anything.
            pub fn passes_with_time(&self) -> bool {
                match self {
                    $(Refusal::$name => $passes,)*
                    Refusal::Other(_) => false,
                }
            }
        }

        impl FromStr for Refusal {
            type Err = Infallible;

            fn from_str(name: &str) -> Result<Self, Infallible> {
                Ok(match name {
                    $(stringify!($name) => Refusal::$name,)*
                    // A hostile chain may send a book.
                    _ => Refusal::Other(name.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()),
                })
            }
        }

        #[cfg(test)]
        const KNOWN: &[Refusal] = &[$(Refusal::$name,)*];
    };
}

refusals! {
    SubnetNotExists: false, "there is no subnet of that number on this chain";
    SubNetRegistrationDisabled: false, "registration is switched off on this subnet";
    HotKeyAlreadyRegisteredInSubNet: false, "this hotkey is registered on the subnet already";
    HotKeyNotRegisteredInSubNet: false, "this hotkey is not registered on the subnet: register it first";
    TooManyRegistrationsThisBlock: true, "registrations of this block are used up: try again in the next one";
    NoNeuronIdAvailable: true, "the subnet is full, and all its neurons are still immune";
    NotEnoughBalanceToStake: false, "the account's free balance is smaller than that";
    NotEnoughStakeToWithdraw: false, "the hotkey has less stake than that";
    NotEnoughStakeToSetWeights: false, "the hotkey has less stake than weights need: add stake";
    AmountTooLow: false, "the amount is below the smallest one that is accepted";
    FaucetDisabled: false, "this chain gives nothing away";
    FaucetLimitExceeded: false, "the faucet does not give so much at once";
    NeuronNoValidatorPermit: true, "the hotkey has no validator permit: permits go to the largest stakes at the end of an epoch";
    SettingWeightsTooFast: true, "the weights were set too short a time ago: wait for the rate limit";
    IncorrectWeightVersionKey: false, "the version key is older than the subnet's: update Argus";
    WeightVecNotEqualSize: false, "there are not as many weights as uids";
    WeightVecLengthIsLow: false, "the subnet wants weights for more miners";
    DuplicateUids: false, "a uid is named twice";
    UidVecContainInvalidOne: false, "a uid is not registered on the subnet: read the metagraph again";
    UidsLengthExceedUidsInSubNet: false, "there are more uids than the subnet has";
    MaxWeightExceeded: false, "one weight is a larger share than the subnet allows";
    BadProof: false, "the signature does not match the signer and the payload";
    AncientBirthBlock: false, "the extrinsic was made for another chain or an earlier run of this one";
    Stale: false, "the nonce was used already";
    Future: true, "the nonce skips one: send the earlier extrinsics first";
    ExhaustsResources: true, "the chain has as many waiting extrinsics as it takes: try again in the next block";
    BadRequest: false, "the request is not what the endpoint takes";
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.explanation())
    }
}

impl std::error::Error for Refusal {}

impl Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Refusal {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(from)?;
        let Ok(refusal) = name.parse();
        Ok(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for refusal in KNOWN {
            let text = serde_json::to_string(refusal).unwrap();
            assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), *refusal);
        }
        let other: Refusal = serde_json::from_str("\"LaterInvention\"").unwrap();
        assert_eq!(other, Refusal::Other("LaterInvention".into()));
        let Ok(book) = "evil\n\u{1b}[31m".repeat(1000).parse::<Refusal>();
        assert_eq!(book.name().len(), 64);
        assert!(book.name().chars().all(|c| c.is_ascii_graphic()));
    }
}
