//! Who asks: what an API server says of a token (`authentication.k8s.io/v1`, `TokenReview`). Pure.

use serde_json::{Value, json};

/// Where tokens are asked about.
pub(super) const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// What the names of service accounts begin with.
const ACCOUNT: &str = "system:serviceaccount:";
/// What a bound token says besides (`serviceaccount.ServiceAccountInfo` of Kubernetes).
const POD: &str = "authentication.kubernetes.io/pod-name";
const NODE: &str = "authentication.kubernetes.io/node-name";

/// A service account's pod that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) account: Account,
    /// The pod that the token is bound to; the server has checked that it still is there.
    pub(super) pod: Option<String>,
    /// The node of that pod, where the server says it (Kubernetes 1.30 and later).
    pub(super) node: Option<String>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A token that makes nobody known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unknown {
    /// None was sent.
    #[error("no bearer token was sent")]
    NoToken,
    /// The server does not take it.
    #[error("the API server does not take the token: {0}")]
    Refused(String),
    /// It is of another audience than was asked for.
    #[error("the token is not for audience `{0}`")]
    Audience(String),
    /// It is a person's, or a node's.
    #[error("`{0}` is no service account")]
    NoAccount(String),
}

/// The question whether a token is good for an audience.
pub(super) fn review(token: &str, audience: &str) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": { "token": token, "audiences": [audience] },
    })
}

/// Reads the answer.
pub(super) fn caller(answer: &Value, audience: &str) -> Result<Caller, Unknown> {
    let status = &answer["status"];
    if status["authenticated"] != true {
        let why = status["error"].as_str().unwrap_or("it is not valid");
        return Err(Unknown::Refused(why.to_owned()));
    }
    // A server that knows nothing of audiences says of none that it was heeded.
    let audiences = status["audiences"].as_array();
    if !audiences.is_some_and(|all| all.iter().any(|one| one == audience)) {
        return Err(Unknown::Audience(audience.to_owned()));
    }
    let user = &status["user"];
    let name = user["username"].as_str().unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT).and_then(|rest| {
        let (namespace, name) = rest.split_once(':')?;
        Some(Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    });
    let account = account.ok_or_else(|| Unknown::NoAccount(name.to_owned()))?;
    let extra = |key: &str| match user["extra"][key].as_array().map(Vec::as_slice) {
        Some([one]) => one.as_str().map(str::to_owned),
        _ => None,
    };
    Ok(Caller {
        account,
        pod: extra(POD),
        node: extra(NODE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_says_who_asks_from_which_pod() {
        let status = |patch: Value| {
            let mut status = json!({
                "authenticated": true,
                "audiences": ["istio-ca"],
                "user": {
                    "username": "system:serviceaccount:culvert-system:culvert-agent",
                    "extra": { POD: ["culvert-agent-x"], NODE: ["n1"] },
                },
            });
            for (key, value) in patch.as_object().unwrap() {
                status[key] = value.clone();
            }
            caller(&json!({ "status": status }), "istio-ca")
        };
        let account = Account {
            namespace: "culvert-system".to_owned(),
            name: "culvert-agent".to_owned(),
        };
        let whole = Caller {
            account: account.clone(),
            pod: Some("culvert-agent-x".to_owned()),
            node: Some("n1".to_owned()),
        };
        assert_eq!(status(json!({})), Ok(whole));
        let user = |user: Value| json!({ "user": user });
        let unbound = Caller {
            account,
            pod: None,
            node: None,
        };
        for extra in [json!({}), json!({ POD: [] }), json!({ POD: ["a", "b"] })] {
            let name = "system:serviceaccount:culvert-system:culvert-agent";
            let found = status(user(json!({ "username": name, "extra": extra })));
            assert_eq!(found, Ok(unbound.clone()));
        }
        for (patch, why) in [
            (
                json!({ "authenticated": false, "error": "it has expired" }),
                Unknown::Refused("it has expired".to_owned()),
            ),
            (
                json!({ "authenticated": null }),
                Unknown::Refused("it is not valid".to_owned()),
            ),
            (
                json!({ "audiences": ["https://kubernetes.default.svc"] }),
                Unknown::Audience("istio-ca".to_owned()),
            ),
            (
                json!({ "audiences": null }),
                Unknown::Audience("istio-ca".to_owned()),
            ),
            (
                user(json!({ "username": "system:node:n1" })),
                Unknown::NoAccount("system:node:n1".to_owned()),
            ),
        ] {
            assert_eq!(status(patch), Err(why));
        }
        assert!(caller(&json!(null), "istio-ca").is_err());
    }
}
