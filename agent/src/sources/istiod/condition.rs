//! How a control plane that is followed fares, and what is worth saying when that changes.

use std::sync::Arc;

use jiff::Timestamp;

/// How istiod fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstiodCondition {
    /// Where it is asked.
    pub address: Arc<str>,
    /// Each type of resources.
    pub types: Vec<TypeCondition>,
    /// Since when there is no connection, and what was in the way last; nothing while there is one.
    pub trouble: Option<IstiodTrouble>,
    /// Connections that failed or ended since the start.
    pub failures: u64,
    /// Resources that were refused since the start.
    pub refusals: u64,
}

/// How one type of resources fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeCondition {
    /// `istio.workload.Address`.
    pub name: &'static str,
    /// How many resources are in use.
    pub resources: usize,
    /// Whether everything that there was has been told once.
    pub begun: bool,
    /// What is refused now, each in a sentence.
    pub refused: Vec<String>,
}

/// An outage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstiodTrouble {
    /// When it began.
    pub since: Timestamp,
    /// What is in the way, to be read after `istiod`.
    pub message: String,
}

impl IstiodCondition {
    /// Types of which nothing has been told yet.
    pub fn waiting(&self) -> impl Iterator<Item = &TypeCondition> {
        self.types.iter().filter(|one| !one.begun)
    }

    /// What is refused now.
    pub fn refused(&self) -> impl Iterator<Item = &str> {
        let all = self.types.iter().flat_map(|one| &one.refused);
        all.map(String::as_str)
    }
}
