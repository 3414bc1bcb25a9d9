//! L0: the two questions that every data-path error answers. The errors themselves live beside the
//! operations that fail.

/// Whose fault a failure is: decides what the log blames and which counter moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The side that called us.
    Downstream,
    /// The side that we called.
    Upstream,
    /// This agent or its node.
    Local,
}

/// Whether the same work may be tried on another endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// No byte of the application has left: try elsewhere.
    Safe,
    /// The answer would be the same everywhere, or bytes may have been seen.
    Never,
}
