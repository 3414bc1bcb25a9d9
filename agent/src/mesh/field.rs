//! Where in an object something is wrong, and what. Positions in a file are the business of the source
//! that read it.

use std::fmt;

/// The way from an object's root to one of its fields.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldPath(pub Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Into a map.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl From<&str> for Segment {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Builds a [`FieldPath`] from names and indexes.
macro_rules! at {
    ($($segment:expr),* $(,)?) => {
        $crate::mesh::field::FieldPath(vec![$($crate::mesh::field::Segment::from($segment)),*])
    };
}
pub(crate) use at;

impl FieldPath {
    /// The path of a field below this one.
    pub(crate) fn join(&self, segment: impl Into<Segment>) -> Self {
        let mut longer = self.clone();
        longer.0.push(segment.into());
        longer
    }

    /// Whether the first step is `key`.
    pub(crate) fn starts_with(&self, key: &str) -> bool {
        matches!(self.0.first(), Some(Segment::Key(first)) if first == key)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(number) => write!(f, "[{number}]")?,
                // Label and annotation keys have dots and slashes of their own; a key with line breaks or terminal
                // sequences in it must not end the sentence or paint the terminal that shows it.
                Segment::Key(key) if key.contains(stands_apart) => {
                    write!(f, "[{}]", key.escape_debug())?;
                }
                Segment::Key(key) if index == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// Whether a key with this character needs brackets around it to be read as one step.
fn stands_apart(character: char) -> bool {
    matches!(character, '.' | '/' | '[') || character.is_control()
}

/// One thing wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FieldError {
    /// Which field; empty for the object as a whole.
    pub path: FieldPath,
    /// What is wrong and what to write instead, without the path.
    pub problem: String,
}

/// Collects what is wrong with one object, so that a reader learns all of it at once.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    errors: Vec<FieldError>,
    /// Whether a field that our types do not have is none: an API server has checked the object, and may be newer.
    pub(crate) fields_may_be_new: bool,
}

impl Faults {
    pub(crate) fn add(&mut self, path: FieldPath, problem: impl Into<String>) {
        self.errors.push(FieldError {
            path,
            problem: problem.into(),
        });
    }

    /// `value`, or a fault at `path` if it is none.
    pub(crate) fn require<T>(
        &mut self,
        value: Option<T>,
        path: FieldPath,
        what: &str,
    ) -> Option<T> {
        if value.is_none() {
            self.add(path, format!("is missing: {what}"));
        }
        value
    }

    pub(crate) fn into_errors(self) -> Vec<FieldError> {
        self.errors
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_read_like_kubectl_explain() {
        assert_eq!(
            at!["spec", "ports", 0, "targetPort"].to_string(),
            "spec.ports[0].targetPort"
        );
        assert_eq!(
            at!["metadata", "labels", "istio.io/x"].to_string(),
            "metadata.labels[istio.io/x]"
        );
        assert_eq!(at![].to_string(), "");
        assert_eq!(
            at!["spec", "clust\n\u{1b}erIP"].to_string(),
            r"spec[clust\n\u{1b}erIP]"
        );
    }
}
