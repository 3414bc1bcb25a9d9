//! What every source brings, and what can be asked of every source.

use std::sync::Arc;
use std::time::Instant;

use super::problem::{OneLine, Place, Problem, Problems, Severity};
use crate::mesh::{Change, Notice, ObjectKey};

/// What a look at the source brought.
#[derive(Clone, Debug)]
pub struct Update {
    /// Differences to the state before; none while the input is refused.
    pub changes: Vec<Change>,
    /// Everything that there is to say about the input.
    pub problems: Arc<Problems>,
    /// When the first of the changes was noticed; absent where that is not known, as of the first state.
    pub noticed: Option<Instant>,
}

/// The state of a source.
pub trait Input {
    /// Where an object in use comes from.
    fn place(&self, object: &ObjectKey) -> Option<Place>;

    /// What is wrong with the input.
    fn own_problems(&self) -> &Problems;

    /// What is wrong with the input, together with what the compiler noticed about its objects.
    fn problems(&self, notices: Vec<Notice>) -> Problems {
        let said = notices.into_iter().filter_map(|notice| {
            Some(Problem {
                severity: if notice.warning {
                    Severity::Warning
                } else {
                    Severity::Info
                },
                place: self.place(&notice.object)?,
                object: notice.object.to_string().into(),
                field: OneLine::default(),
                message: notice.message.into(),
            })
        });
        Problems::new(
            self.own_problems()
                .list
                .iter()
                .cloned()
                .chain(said)
                .collect(),
        )
    }
}
