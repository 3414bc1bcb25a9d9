//! Istio's retry policy (`retries` of a VirtualService, `defaultHttpRetryPolicy` of the mesh).

use http::StatusCode;
use serde::Deserialize;
use userspace_l7::model::{RetryOn, RetryPolicy};

use super::duration::IstioDuration;
use super::field::{Faults, FieldPath};

/// `retries`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "Istio's own fields, by their own names")]
pub struct HttpRetry {
    pub attempts: Option<i64>,
    pub per_try_timeout: Option<IstioDuration>,
    /// Words of Envoy's, and statuses.
    pub retry_on: String,
    pub retry_remote_localities: Option<bool>,
    pub retry_ignore_previous_hosts: Option<bool>,
    pub backoff: Option<IstioDuration>,
}

impl HttpRetry {
    /// The policy; what it leaves open is as in Istio's default.
    pub(crate) fn compile(&self) -> RetryPolicy {
        let default = RetryPolicy::default();
        let attempts = self.attempts.map(u32::try_from);
        let mut policy = RetryPolicy {
            // None or fewer: never.
            attempts: attempts.map_or(default.attempts, Result::unwrap_or_default),
            per_try_timeout: self
                .per_try_timeout
                .map(|one| one.0)
                .filter(|one| !one.is_zero()),
            backoff: self.backoff.map_or(default.backoff, |one| one.0),
            same_endpoint: self.retry_ignore_previous_hosts == Some(false),
            ..default
        };
        if !self.retry_on.is_empty() {
            policy.on = RetryOn::default();
            for word in self.retry_on.split(',').map(str::trim) {
                read_word(word, &mut policy);
            }
        }
        policy
    }

    pub(crate) fn check(&self, place: &FieldPath, faults: &mut Faults) {
        for word in self.unknown_words() {
            let rule = "use Envoy's words, such as 5xx, reset or connect-failure, or statuses";
            let problem = format!("`{word}` says nothing about when to retry: {rule}");
            faults.add(place.join("retryOn"), problem);
        }
    }

    /// Words of `retryOn` that mean nothing.
    fn unknown_words(&self) -> impl Iterator<Item = &str> {
        let words = self.retry_on.split(',').map(str::trim);
        words.filter(|word| !word.is_empty() && !read_word(word, &mut RetryPolicy::default()))
    }
}

/// Adds what a word of `retryOn` stands for; false if it stands for nothing.
fn read_word(word: &str, policy: &mut RetryPolicy) -> bool {
    let on = &mut policy.on;
    let flag = match word {
        "connect-failure" => &mut on.connect_failure,
        "refused-stream" => &mut on.refused_stream,
        "reset" => &mut on.reset,
        "reset-before-request" => &mut on.reset_before_request,
        "gateway-error" => &mut on.gateway_error,
        "5xx" => &mut on.server_error,
        "retriable-4xx" => &mut on.retriable_4xx,
        "envoy-ratelimited" => &mut on.rate_limited,
        "cancelled" => &mut on.grpc_cancelled,
        "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
        "internal" => &mut on.grpc_internal,
        "resource-exhausted" => &mut on.grpc_resource_exhausted,
        "unavailable" => &mut on.grpc_unavailable,
        // The statuses beside it say which; Istio has no place to name headers, and HTTP/3 is spoken to nobody.
        "retriable-status-codes" | "retriable-headers" | "http3-post-connect-failure" => {
            return true;
        }
        other => {
            let status = other.parse().ok().map(StatusCode::from_u16);
            let Some(Ok(status)) = status else {
                return false;
            };
            policy.statuses.push(status);
            return true;
        }
    };
    *flag = true;
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use userspace_l7::model::{RetryOn, RetryPolicy};

    use super::HttpRetry;
    use crate::mesh::IstioDuration;

    #[test]
    fn what_is_left_open_is_istios_default() {
        assert_eq!(HttpRetry::default().compile(), RetryPolicy::default());
    }

    #[test]
    fn words_and_statuses_say_when_to_retry() {
        let retry = HttpRetry {
            attempts: Some(3),
            per_try_timeout: Some(IstioDuration(Duration::from_secs(2))),
            retry_on: "5xx, reset,503 ,retriable-status-codes,retriable-headers".to_owned(),
            ..HttpRetry::default()
        };
        let policy = retry.compile();
        assert_eq!(policy.attempts, 3);
        assert_eq!(policy.per_try_timeout, Some(Duration::from_secs(2)));
        assert_eq!(
            policy.on,
            RetryOn {
                server_error: true,
                reset: true,
                ..RetryOn::default()
            }
        );
        assert_eq!(policy.statuses, [503]);
        assert_eq!(retry.unknown_words().count(), 0);
        let wrong = HttpRetry {
            retry_on: "5xx,never".to_owned(),
            attempts: Some(-1),
            ..HttpRetry::default()
        };
        assert_eq!(wrong.unknown_words().collect::<Vec<_>>(), ["never"]);
        assert_eq!(wrong.compile().attempts, 0);
    }
}
