//! What is wrong with the input, and where.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The input is not used until this is corrected.
    Error,
    /// The input is used, but probably not meant so.
    Warning,
    /// Worth knowing.
    Info,
}

/// A place in a file. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<str>,
    /// Line and column, if the problem has one.
    #[serde(flatten)]
    pub position: Option<Position>,
}

/// A position in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        match self.position {
            Some(Position { line, column }) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// One problem: prints as one sentence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// Kind and name of the object; empty if there is none yet.
    pub object: OneLine,
    /// The field; empty for the object as a whole.
    pub field: OneLine,
    /// What is wrong and what to do.
    pub message: OneLine,
}

/// Text that stays on its line and paints no terminal, whatever a manifest that it quotes holds: characters that
/// would do either are written out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct OneLine(String);

impl From<&str> for OneLine {
    fn from(text: &str) -> Self {
        Self(one_line(text).into_owned())
    }
}

impl From<String> for OneLine {
    fn from(text: String) -> Self {
        match one_line(&text) {
            Cow::Borrowed(_) => Self(text),
            Cow::Owned(escaped) => Self(escaped),
        }
    }
}

impl Deref for OneLine {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OneLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text with what would leave its line, or change how the rest is shown, written out.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(leaves_the_line) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if leaves_the_line(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Control characters, Unicode's own line breaks, and the marks that turn the direction of what follows.
fn leaves_the_line(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.place)?;
        if !self.object.is_empty() {
            write!(f, " {}:", self.object)?;
        }
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}

/// What there is to say about the input as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Problems {
    /// Sorted: errors first, then by place.
    pub list: Vec<Problem>,
    /// Whether the newest input was refused, and an older state is in use.
    pub stale: bool,
    /// Problems of severity Error that are not in the list, which has an end.
    pub omitted: usize,
}

impl Problems {
    /// Longest list that is kept.
    const MAX: usize = 200;

    pub(crate) fn new(mut list: Vec<Problem>) -> Self {
        list.sort_unstable();
        list.dedup();
        let stale = list
            .iter()
            .any(|problem| problem.severity == Severity::Error);
        let omitted = list.len().saturating_sub(Self::MAX);
        list.truncate(Self::MAX);
        Self {
            list,
            stale,
            omitted,
        }
    }

    /// How many problems of a severity are listed.
    pub fn count(&self, severity: Severity) -> usize {
        self.list
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::OneLine;

    #[test]
    fn what_a_manifest_says_stays_on_its_line() {
        let check = |text: &str, expected: &str| {
            assert_eq!(&*OneLine::from(text), expected);
            assert_eq!(&*OneLine::from(text.to_owned()), expected);
        };
        check("", "");
        check(
            "`größer \u{1f980}` is no name",
            "`größer \u{1f980}` is no name",
        );
        check("a\r\nb\tc", r"a\r\nb\tc");
        check("\u{1b}[31m\u{7f}\u{85}", r"\u{1b}[31m\u{7f}\u{85}");
        check("\u{2028}\u{202e}\u{2066}", r"\u{2028}\u{202e}\u{2066}");
    }
}
