//! L2: the keys that tokens are signed with. The agent fetches and publishes, workers read without a lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::model::{JwksSource, JwtKeys};
use crate::policy::jwt::KeySet;

/// Key sets by where they were fetched from. A source that is not here has not been fetched yet: its tokens
/// are not accepted.
#[derive(Debug, Default)]
pub struct KeySets {
    by_source: ArcSwap<imbl::HashMap<JwksSource, Arc<KeySet>>>,
}

impl KeySets {
    /// The keys of a source, if it could ever be fetched.
    pub fn get(&self, source: &JwksSource) -> Option<Arc<KeySet>> {
        self.by_source.load().get(source).cloned()
    }

    /// Adds a source's keys, or replaces them.
    pub fn publish(&self, source: &JwksSource, keys: &Arc<KeySet>) {
        self.by_source
            .rcu(|current| current.update(source.clone(), Arc::clone(keys)));
    }

    /// Removes a source that no rule names any more.
    pub fn withdraw(&self, source: &JwksSource) {
        self.by_source.rcu(|current| current.without(source));
    }
}

/// Inline key sets that are kept parsed. More than a node's policies have; beyond it the cache starts anew.
const KEPT: usize = 256;

/// A text, and the keys that it holds, if it is a key set.
type Inline = (Arc<str>, Option<Arc<KeySet>>);

/// One worker's view: what was fetched, and the inline sets, each parsed once.
#[derive(Debug)]
pub(crate) struct Keys {
    fetched: Arc<KeySets>,
    /// By the text's address; holding the text keeps its address from being given to another one.
    inline: RefCell<HashMap<usize, Inline>>,
}

impl Keys {
    pub(crate) fn new(fetched: Arc<KeySets>) -> Self {
        Self {
            fetched,
            inline: RefCell::default(),
        }
    }

    /// The keys that a rule names; `None` if they are not here, or are none.
    pub(crate) fn of(&self, keys: &JwtKeys) -> Option<Arc<KeySet>> {
        let text = match keys {
            JwtKeys::Remote { source, .. } => return self.fetched.get(source),
            JwtKeys::Inline(text) => text,
        };
        let mut inline = self.inline.borrow_mut();
        if inline.len() > KEPT {
            inline.clear();
        }
        let address = Arc::as_ptr(text).cast::<u8>() as usize;
        let (_text, parsed) = inline.entry(address).or_insert_with(|| {
            let parsed = KeySet::parse(text).map(Arc::new);
            (Arc::clone(text), parsed.ok())
        });
        parsed.clone()
    }
}
