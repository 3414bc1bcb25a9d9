//! What a fuzz target reaches of this module's private parts: a check over bytes that panics where a promise is broken.

use http::header::HOST;
use http::{HeaderName, HeaderValue, Request, Uri, request};

use super::framing::{Framing, Violation};
use super::sniff::sniff;
use super::target::receive;

/// What a client sends first. Its framing is the same however the bytes are cut, and a request that is taken has a
/// target in one form.
pub fn request_head(bytes: &[u8]) {
    let _not_what_it_is_but_that_it_ends = sniff(bytes);
    let (taken, violation) = read([bytes]);
    assert!(
        violation.is_some() || taken == bytes.len(),
        "bytes are lost"
    );
    // One cut for each input, at a place that its own bytes choose, and one cut after each.
    let cut = bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>() % (bytes.len() + 1);
    let (one, other) = bytes.split_at(cut);
    assert_eq!(read([one, other]).1, violation, "a cut at {cut} changes it");
    assert_eq!(read(bytes.chunks(1)).1, violation, "cuts change it");
    if let Some(mut parts) = parts(bytes)
        && receive(&mut parts).is_ok()
    {
        let form = |parts: &request::Parts| (parts.uri.clone(), parts.headers.get(HOST).cloned());
        assert!(parts.uri.authority().is_none() && parts.uri.scheme().is_none());
        assert!(parts.uri.path().starts_with('/') || parts.uri.path() == "*");
        let once = form(&parts);
        assert_eq!(receive(&mut parts), Ok(()), "its own form is refused");
        assert_eq!(form(&parts), once, "its own form is another");
    }
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (usize, Option<Violation>) {
    let mut framing = Framing::default();
    let mut taken = 0;
    for piece in pieces {
        let (more, violation) = framing.read(piece);
        taken += more;
        if violation.is_some() {
            return (taken, violation);
        }
    }
    (taken, None)
}

/// The head as a reader that forgives everything would read it; `None` if its parts are none at all.
fn parts(bytes: &[u8]) -> Option<request::Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut words = lines.next()?.splitn(3, |byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut request = Request::builder()
        .method(method)
        .uri(Uri::try_from(target).ok()?);
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..)?.trim_ascii();
        let name = HeaderName::from_bytes(name).ok()?;
        request = request.header(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request.body(()).ok()?.into_parts().0)
}
