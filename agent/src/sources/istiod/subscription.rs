//! One type of resources over all connections: what is known of it, what is asked for, and what an answer is answered
//! with. Pure.

use std::collections::{BTreeMap, HashMap};

use super::messages::{DeltaRequest, DeltaResponse, Node, Resource, Status};
use super::translate::{self, Defaults, Refused};
use crate::mesh::Announcement;

/// `google.rpc.Code`: the resources are at fault.
const INVALID_ARGUMENT: i32 = 3;
/// Most refusals that are kept and answered in words.
const MAX_REFUSALS: usize = 20;

/// Everything of one type.
#[derive(Debug)]
pub(super) struct Subscription {
    type_url: &'static str,
    /// By the names that istiod gives.
    known: HashMap<String, Known>,
    /// What is refused now, with the reasons.
    refused: BTreeMap<String, Refused>,
    /// Whether an answer has been taken in ever.
    begun: bool,
}

/// A resource that was taken over.
#[derive(Debug)]
struct Known {
    /// As istiod numbers it; policies have none.
    version: String,
    /// What takes it back.
    end: Announcement,
}

/// What an answer comes to.
#[derive(Debug, PartialEq)]
pub(super) struct Taken {
    pub(super) announcements: Vec<Announcement>,
    /// What istiod is answered.
    pub(super) answer: DeltaRequest,
    /// How many resources were refused in this answer.
    pub(super) refusals: u64,
}

impl Subscription {
    pub(super) fn new(type_url: &'static str) -> Self {
        Self {
            type_url,
            known: HashMap::new(),
            refused: BTreeMap::new(),
            begun: false,
        }
    }

    pub(super) fn type_url(&self) -> &'static str {
        self.type_url
    }

    /// Whether everything that there was has been told once.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// How many resources are in use.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// What is refused now, and why: `bookinfo/p has action 7, which is unknown`.
    pub(super) fn refusals(&self) -> impl Iterator<Item = String> {
        let refused = self.refused.iter().take(MAX_REFUSALS);
        refused.map(|(name, why)| format!("{name} {why}"))
    }

    /// The first request of a connection: everything, less what is known in the version that it has. What was refused is
    /// sent again.
    pub(super) fn ask(&self, node: Node) -> DeltaRequest {
        let known = self.known.iter();
        let current = known.filter(|(name, _)| !self.refused.contains_key(*name));
        DeltaRequest {
            node: Some(node),
            type_url: self.type_url.to_owned(),
            // No name at all subscribes to everything.
            initial_resource_versions: current
                .map(|(name, known)| (name.clone(), known.version.clone()))
                .collect(),
            ..DeltaRequest::default()
        }
    }

    /// Takes an answer in. What is wrong in it is refused by itself: what was known of that resource stays, and a policy
    /// of which nothing was known closes what it speaks about.
    pub(super) fn take(&mut self, response: DeltaResponse, defaults: &Defaults) -> Taken {
        self.begun = true;
        let mut announcements = Vec::new();
        for name in &response.removed_resources {
            self.refused.remove(name);
            announcements.extend(self.known.remove(name).map(|known| known.end));
        }
        let mut refused_now = Vec::new();
        for resource in response.resources {
            if let Err(name) = self.take_one(resource, defaults, &mut announcements) {
                refused_now.push(name);
            }
        }
        let sentences = refused_now.iter().take(MAX_REFUSALS).filter_map(|name| {
            let why = self.refused.get(name)?;
            Some(format!("{name} {why}"))
        });
        let sentences: Vec<String> = sentences.collect();
        let error_detail = (!sentences.is_empty()).then(|| Status {
            code: INVALID_ARGUMENT,
            message: sentences.join("; "),
        });
        Taken {
            announcements,
            answer: DeltaRequest {
                type_url: self.type_url.to_owned(),
                response_nonce: response.nonce,
                error_detail,
                ..DeltaRequest::default()
            },
            refusals: refused_now.len().try_into().unwrap_or(u64::MAX),
        }
    }

    /// Takes one resource over, or gives the name of what is refused.
    fn take_one(
        &mut self,
        resource: Resource,
        defaults: &Defaults,
        announcements: &mut Vec<Announcement>,
    ) -> Result<(), String> {
        let Resource {
            name,
            version,
            content,
        } = resource;
        let (announcement, refused) = match translate::announcement(content.as_ref(), defaults) {
            Ok(announcement) => (Some(announcement), None),
            Err(why) => {
                let is_new = !self.known.contains_key(&name);
                let substitute = is_new
                    .then(|| translate::closed(content.as_ref()))
                    .flatten();
                (substitute, Some(why))
            }
        };
        if let Some(announcement) = announcement {
            let end = end(&announcement);
            let known = Known { version, end };
            // A resource that names something else than it did leaves what it named.
            if let Some(before) = self.known.insert(name.clone(), known)
                && self
                    .known
                    .get(&name)
                    .is_some_and(|now| now.end != before.end)
            {
                announcements.push(before.end);
            }
            announcements.push(announcement);
        }
        if let Some(why) = refused {
            self.refused.insert(name.clone(), why);
            return Err(name);
        }
        self.refused.remove(&name);
        Ok(())
    }
}

/// What takes an announcement back.
fn end(announcement: &Announcement) -> Announcement {
    match announcement {
        Announcement::Workload(uid, _) => Announcement::Workload(uid.clone(), None),
        Announcement::Service(key, _) => Announcement::Service(key.clone(), None),
        Announcement::Policy(key, _) => Announcement::Policy(key.clone(), None),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::{Subscription, Taken};
    use crate::mesh::Announcement;
    use crate::sources::istiod::messages::{Any, Authorization, DeltaResponse, Node, Resource};
    use crate::sources::istiod::translate::{AUTHORIZATION, Defaults};

    fn policy(name: &str, action: i32) -> Resource {
        let content = Authorization {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            action,
            ..Authorization::default()
        };
        Resource {
            name: format!("shop/{name}"),
            version: format!("v{action}"),
            content: Some(Any {
                type_url: AUTHORIZATION.to_owned(),
                value: content.encode_to_vec(),
            }),
        }
    }

    fn answer(resources: Vec<Resource>, removed: &[&str]) -> DeltaResponse {
        DeltaResponse {
            resources,
            type_url: AUTHORIZATION.to_owned(),
            nonce: "n".to_owned(),
            removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn take(subscription: &mut Subscription, response: DeltaResponse) -> Taken {
        let cluster = "Kubernetes".into();
        subscription.take(response, &Defaults { cluster })
    }

    /// `+name` for what is there, `-name` for what is gone.
    fn shown(taken: &Taken) -> Vec<String> {
        let one = |announcement: &Announcement| match announcement {
            Announcement::Policy(key, Some(policy)) => format!("+{} {:?}", key.name, policy.action),
            Announcement::Policy(key, None) => format!("-{}", key.name),
            other => format!("{other:?}"),
        };
        taken.announcements.iter().map(one).collect()
    }

    #[test]
    fn answers_are_taken_over_and_acknowledged() {
        let mut subscription = Subscription::new(AUTHORIZATION);
        assert!(!subscription.has_begun());
        let taken = take(
            &mut subscription,
            answer(vec![policy("a", 0), policy("b", 1)], &[]),
        );
        assert_eq!(shown(&taken), ["+a Allow", "+b Deny"]);
        assert_eq!(taken.answer.response_nonce, "n");
        assert_eq!(taken.answer.error_detail, None);
        assert!(subscription.has_begun());

        let taken = take(&mut subscription, answer(vec![], &["shop/a", "shop/never"]));
        assert_eq!(shown(&taken), ["-a"]);
        assert_eq!(subscription.len(), 1);
    }

    #[test]
    fn an_empty_answer_is_a_beginning_too() {
        let mut subscription = Subscription::new(AUTHORIZATION);
        assert_eq!(
            shown(&take(&mut subscription, answer(vec![], &[]))),
            [""; 0]
        );
        assert!(subscription.has_begun());
    }

    #[test]
    fn what_is_wrong_is_refused_by_itself_and_the_last_good_state_stays() {
        let mut subscription = Subscription::new(AUTHORIZATION);
        take(&mut subscription, answer(vec![policy("a", 0)], &[]));
        let taken = take(
            &mut subscription,
            answer(vec![policy("a", 7), policy("b", 0)], &[]),
        );
        assert_eq!(shown(&taken), ["+b Allow"]);
        let detail = taken.answer.error_detail.unwrap();
        assert_eq!(detail.code, 3);
        assert_eq!(detail.message, "shop/a has action 7, which is unknown");
        assert_eq!(taken.refusals, 1);
        let refusals: Vec<_> = subscription.refusals().collect();
        assert_eq!(refusals, ["shop/a has action 7, which is unknown"]);
        // It is asked for again by not being mentioned.
        let asked = subscription.ask(Node::default()).initial_resource_versions;
        assert_eq!(asked.keys().collect::<Vec<_>>(), ["shop/b"]);

        let taken = take(&mut subscription, answer(vec![policy("a", 1)], &[]));
        assert_eq!(shown(&taken), ["+a Deny"]);
        assert_eq!(subscription.refusals().count(), 0);
    }

    #[test]
    fn a_policy_that_never_was_understood_closes_what_it_speaks_about() {
        let mut subscription = Subscription::new(AUTHORIZATION);
        let taken = take(&mut subscription, answer(vec![policy("a", 7)], &[]));
        assert_eq!(shown(&taken), ["+a Deny"]);
        assert!(taken.answer.error_detail.is_some());
        // Nothing can be made of one whose bytes are none.
        let mut broken = policy("b", 0);
        broken.content.as_mut().unwrap().value = vec![0xff];
        let taken = take(&mut subscription, answer(vec![broken], &[]));
        assert_eq!(shown(&taken), [""; 0]);
        let taken = take(&mut subscription, answer(vec![], &["shop/a", "shop/b"]));
        assert_eq!(shown(&taken), ["-a"]);
        assert_eq!(subscription.refusals().count(), 0);
    }

    #[test]
    fn the_next_connection_begins_with_what_is_known() {
        let mut subscription = Subscription::new(AUTHORIZATION);
        let first = subscription.ask(Node::default());
        assert!(first.initial_resource_versions.is_empty());
        take(
            &mut subscription,
            answer(vec![policy("a", 0), policy("b", 1)], &[]),
        );
        let again = subscription.ask(Node::default());
        let known: Vec<_> = again.initial_resource_versions.into_iter().collect();
        let expected = [("shop/a", "v0"), ("shop/b", "v1")];
        assert_eq!(
            known,
            expected.map(|(name, version)| (name.to_owned(), version.to_owned()))
        );
        assert_eq!(again.response_nonce, "");
    }
}
