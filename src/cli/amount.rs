//! Amounts as people write them.

use std::{fmt, str::FromStr};

use crate::chain::TAO;

/// An amount of TAO, exact to the rao. Its text form is a decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tao(u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an amount of TAO is a number like 5000 or 0.25, with nine decimals at most")]
pub struct BadAmount;

impl Tao {
    pub fn from_rao(rao: u64) -> Self {
        Self(rao)
    }

    pub fn rao(self) -> u64 {
        self.0
    }
}

impl FromStr for Tao {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || decimals.len() > 9 || !digits(whole) || !digits(decimals) {
            return Err(BadAmount);
        }
        let whole: u64 = whole.parse().map_err(|_| BadAmount)?;
        let decimals: u64 = format!("{decimals:0<9}").parse().map_err(|_| BadAmount)?;
        whole.checked_mul(TAO).and_then(|rao| rao.checked_add(decimals)).map(Self).ok_or(BadAmount)
    }
}

impl fmt::Display for Tao {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:09}", self.0 / TAO, self.0 % TAO);
        f.pad(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_and_read_back() {
        for (text, rao) in
            [("5000", 5000 * TAO), ("0.25", TAO / 4), ("0", 0), ("18446744073.709551615", u64::MAX)]
        {
            assert_eq!(text.parse(), Ok(Tao(rao)));
            assert_eq!(Tao(rao).to_string(), text);
        }
        for bad in ["", ".5", "-1", "1e3", "0.1234567891", "18446744074", "1,5", " 1", "１"] {
            assert_eq!(bad.parse::<Tao>(), Err(BadAmount), "{bad}");
        }
        assert_eq!("1.".parse(), Ok(Tao(TAO)));
        assert_eq!(format!("{:>6}", Tao(TAO / 2)), "   0.5");
    }
}
