//! Asking an external authorizer about one request.

use ::http::{Uri, request};

use super::{Addressee, AskError, Asker};
use crate::http::{self, Inflow, Refusal, Version};
use crate::model::{CheckedBody, ExternalAuthorizer, ExternalAuthorizerProtocol, RequestHead};
use crate::policy::ext_authz::{
    self, Answer, CHECK, Changes, Checked, CheckedPeer, HeaderChange, ShownBody,
};
use crate::policy::path::NormalizedPath;

/// What a request is asked about with.
#[derive(Clone, Copy)]
pub(crate) struct Inquiry<'a> {
    /// Its path in the one spelling.
    pub(crate) path: &'a NormalizedPath,
    pub(crate) source: CheckedPeer<'a>,
    pub(crate) destination: CheckedPeer<'a>,
}

/// Asks, and makes the request what the answer makes of it; what is to be changed of the response comes back.
///
/// # Errors
/// [`Refusal::Rejected`], or how the authorizer's silence is answered.
///
/// # Cancel safety
/// Dropping the future takes the question back. What has been read of the body stays in it.
pub(crate) async fn ask_authorizer(
    asker: Asker<'_>,
    authorizer: &ExternalAuthorizer,
    inquiry: Inquiry<'_>,
    (parts, body): (&mut request::Parts, &mut Inflow),
) -> Result<Vec<HeaderChange>, Refusal> {
    let body = match &authorizer.body {
        Some(wanted) => Some(show(*wanted, body).await?),
        None => None,
    };
    let head = RequestHead::of(parts);
    let checked = Checked {
        path: match inquiry.path.as_str() {
            "" => head.path,
            path => path,
        },
        head,
        version: parts.version,
        source: inquiry.source,
        destination: inquiry.destination,
        body,
    };
    let answer = match &authorizer.protocol {
        ExternalAuthorizerProtocol::Http(settings) => {
            let to = addressee(authorizer, None);
            match ext_authz::http_question(settings, &checked) {
                None => Err(AskError::Unaskable),
                Some(question) => asker.ask(to, question).await.map(|heard| {
                    let (status, headers) = (heard.status, &heard.headers);
                    ext_authz::http_answer(settings, status, headers, &heard.body)
                }),
            }
        }
        ExternalAuthorizerProtocol::Grpc => {
            let as_bytes = authorizer.body.is_some_and(|body| body.as_bytes);
            let question = ext_authz::grpc_question(&checked, as_bytes);
            let to = addressee(authorizer, Some(Version::Http2));
            let answered = asker.call(to, CHECK, &question).await;
            answered.map(|message| ext_authz::grpc_answer(&message))
        }
    };
    let changes = match answer {
        Ok(Answer::Allowed(changes)) => changes,
        Ok(Answer::Denied(rejection)) => return Err(Refusal::Rejected(Box::new(rejection))),
        Ok(Answer::Failed) => silent(asker, authorizer, &AskError::Nonsense)?,
        Err(error) => silent(asker, authorizer, &error)?,
    };
    changes.apply_to_request(&mut parts.headers);
    if let Some(query) = changes.changed_query(parts.uri.query().unwrap_or_default()) {
        change_query(&mut parts.uri, &query);
    }
    Ok(changes.response)
}

/// Gives a target another query. One that no URI can have is left as it is: nothing in it is the client's.
fn change_query(uri: &mut Uri, query: &str) {
    let path = uri.path();
    let target = match query {
        "" => path.parse(),
        query => format!("{path}?{query}").parse(),
    };
    let mut parts = uri.clone().into_parts();
    if let Ok(target) = target {
        parts.path_and_query = Some(target);
        if let Ok(changed) = Uri::from_parts(parts) {
            *uri = changed;
        }
    }
}

fn addressee(authorizer: &ExternalAuthorizer, version: Option<Version>) -> Addressee<'_> {
    Addressee {
        service: &authorizer.service,
        port: authorizer.port,
        version,
        timeout: authorizer.timeout,
    }
}

/// What becomes of a request that the authorizer has nothing to say of.
fn silent(
    asker: Asker<'_>,
    authorizer: &ExternalAuthorizer,
    error: &AskError,
) -> Result<Changes, Refusal> {
    asker.report(&authorizer.name, error, authorizer.fail_open);
    if authorizer.fail_open {
        Ok(Changes::default())
    } else {
        Err(Refusal::NoVerdict(authorizer.status_on_error))
    }
}

/// Reads as much of a body as the authorizer is to see.
async fn show(wanted: CheckedBody, body: &mut Inflow) -> Result<ShownBody, Refusal> {
    let ahead = body.read_ahead(wanted.max_bytes).await;
    let shown = ahead.map_err(|_broken| Refusal::Malformed(http::Malformed::Body))?;
    if shown.is_partial && !wanted.allow_partial {
        return Err(Refusal::TooLong);
    }
    Ok(ShownBody {
        bytes: shown.bytes,
        is_partial: shown.is_partial,
    })
}
