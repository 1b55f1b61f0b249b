//! Weighted words in prompts, in the syntax of AUTOMATIC1111's web interface, which model hubs'
//! example prompts are written in:
//!
//! | text | weight |
//! |---|---|
//! | `(word)` | × 1.1, for each pair of parentheses |
//! | `[word]` | ÷ 1.1, for each pair of brackets |
//! | `(some words:1.3)` | × 1.3 |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
//!
//! A parenthesis or bracket that is never closed reaches to the end; one that was never opened, and a
//! `:1.3` outside of parentheses, are text. Weights multiply when nested, and end at ±[`MAX_WEIGHT`].

/// The largest weight of a word.
pub const MAX_WEIGHT: f32 = 10.0;
/// What a pair of parentheses multiplies by, and a pair of brackets divides by.
const STEP: f64 = 1.1;

/// Words of one weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fragment {
    pub(super) text: String,
    pub(super) weight: f32,
}

/// Splits a prompt by weight. A prompt without weights is one fragment, its text as it is.
pub(super) fn parse(prompt: &str) -> Vec<Fragment> {
    let mut pieces: Vec<(String, f64)> = Vec::new();
    let (mut parentheses, mut brackets) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut taken = first.len_utf8();
        let mut literal = None;
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|next| "()[]\\".contains(*next));
                taken += escaped.map_or(0, char::len_utf8);
                literal = Some(escaped.map_or_else(String::new, String::from));
            }
            '(' => parentheses.push(pieces.len()),
            '[' => brackets.push(pieces.len()),
            ')' => match parentheses.pop() {
                Some(start) => scale(&mut pieces[start..], STEP),
                None => literal = Some(first.to_string()),
            },
            ']' => match brackets.pop() {
                Some(start) => scale(&mut pieces[start..], 1.0 / STEP),
                None => literal = Some(first.to_string()),
            },
            ':' => match closing_weight(rest).filter(|_| !parentheses.is_empty()) {
                Some((weight, length)) => {
                    taken = length;
                    let start = parentheses.pop().unwrap_or_default();
                    scale(&mut pieces[start..], weight);
                }
                None => literal = Some(first.to_string()),
            },
            _ => {
                taken = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                literal = Some(rest[..taken].to_owned());
            }
        }
        pieces.extend(literal.map(|text| (text, 1.0)));
        rest = &rest[taken..];
    }
    for start in parentheses {
        scale(&mut pieces[start..], STEP);
    }
    for start in brackets {
        scale(&mut pieces[start..], 1.0 / STEP);
    }
    merge(pieces)
}

fn scale(pieces: &mut [(String, f64)], factor: f64) {
    pieces.iter_mut().for_each(|(_, weight)| *weight *= factor);
}

/// The weight in `:1.3)` at the start of a text, and how long that is.
fn closing_weight(text: &str) -> Option<(f64, usize)> {
    let inside = &text[1..text.find(')')?];
    let number = inside.trim();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    // Nothing may stand between the number and the parenthesis that would not be a number there.
    let weight = number.parse::<f64>().ok().filter(|weight| is_plain && weight.is_finite())?;
    Some((weight, inside.len() + 2))
}

/// Joins neighbours of equal weight.
fn merge(pieces: Vec<(String, f64)>) -> Vec<Fragment> {
    let mut fragments: Vec<Fragment> = Vec::new();
    for (text, weight) in pieces {
        let weight =
            if weight.is_nan() { 0.0 } else { weight.clamp(-f64::from(MAX_WEIGHT), f64::from(MAX_WEIGHT)) };
        let weight = weight as f32;
        match fragments.last_mut().filter(|last| last.weight == weight) {
            Some(last) => last.text.push_str(&text),
            None => fragments.push(Fragment { text, weight }),
        }
    }
    if fragments.is_empty() {
        fragments.push(Fragment { text: String::new(), weight: 1.0 });
    }
    fragments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn assert_parsed(prompt: &str, expected: &[(&str, f32)]) {
        let found = parse(prompt);
        let texts: Vec<&str> = found.iter().map(|fragment| fragment.text.as_str()).collect();
        assert_eq!(texts, expected.iter().map(|(text, _)| *text).collect::<Vec<_>>(), "{prompt}");
        for (fragment, (_, weight)) in found.iter().zip(expected) {
            assert!((fragment.weight - weight).abs() < 1e-5, "{prompt}: {fragment:?} is not {weight}");
        }
    }

    /// The examples of the web interface's own source, and its corners.
    #[test]
    fn weights_are_those_of_the_web_interface() {
        assert_parsed("normal text", &[("normal text", 1.0)]);
        assert_parsed("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        assert_parsed("(unbalanced", &[("unbalanced", 1.1)]);
        assert_parsed(r"\(literal\]", &[("(literal]", 1.0)]);
        assert_parsed("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        assert_parsed(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
        assert_parsed("[[less]]", &[("less", 0.826_446)]);
        assert_parsed("([cancelled])", &[("cancelled", 1.0)]);
        assert_parsed("a :) and :( b", &[("a :) and :", 1.0), (" b", 1.1)]);
        assert_parsed("16:9 picture]", &[("16:9 picture]", 1.0)]);
        assert_parsed("(ratio 16:9 wide)", &[("ratio 16:9 wide", 1.1)]);
        assert_parsed("(a: 0.5 ) b", &[("a", 0.5), (" b", 1.0)]);
        assert_parsed("(a:-1) b:2", &[("a", -1.0), (" b:2", 1.0)]);
        assert_parsed(
            "(a:1.2.3) (b:nan) (c:1e3) (d:inf)",
            &[
                ("a:1.2.3", 1.1),
                (" ", 1.0),
                ("b:nan", 1.1),
                (" ", 1.0),
                ("c:1e3", 1.1),
                (" ", 1.0),
                ("d:inf", 1.1),
            ],
        );
        assert_parsed("(a:99999999999)", &[("a", MAX_WEIGHT)]);
        assert_parsed(r"a \ b \\ c", &[(r"a  b \ c", 1.0)]);
        assert_parsed("", &[("", 1.0)]);
        assert_parsed("()", &[("", 1.0)]);
        assert_parsed(&"(".repeat(4000), &[("", 1.0)]);
        assert_parsed(&format!("{}🍎", "(".repeat(4000)), &[("🍎", MAX_WEIGHT)]);
        assert_parsed(&format!("{}🍎", "[".repeat(4000)), &[("🍎", 0.0)]);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_loss_or_harm(prompt in r"[a-c \\()\[\]:0-9.🍎-]{0,80}") {
            for fragment in parse(&prompt) {
                prop_assert!(fragment.weight.is_finite() && fragment.weight.abs() <= MAX_WEIGHT);
            }
            let plain = prompt.replace(['\\', '(', ')', '[', ']'], "");
            prop_assert_eq!(parse(&plain), [Fragment { text: plain.clone(), weight: 1.0 }]);
        }
    }
}
