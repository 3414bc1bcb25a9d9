//! As much DNS (RFC 1035 §4) as scenarios need: one question, answers that are addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};

/// The record types that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 address.
    A = 1,
    /// IPv6 address.
    Aaaa = 28,
}

/// What a server said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Response code: 0 is fine, 3 is "no such name".
    pub code: u8,
    /// Addresses in the order of the records.
    pub addresses: Vec<IpAddr>,
}

/// A recursive query for one name.
pub fn query(id: u16, name: &str, kind: Kind) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let label = &label.as_bytes()[..label.len().min(63)];
        message.extend(u8::try_from(label.len()));
        message.extend(label);
    }
    message.extend([0, 0, kind as u8, 0, 1]);
    message
}

/// Reads an answer.
///
/// # Errors
/// If it is malformed or no answer.
pub fn parse(message: &[u8]) -> Result<Answer> {
    let byte = |at: usize| message.get(at).copied().context("the message breaks off");
    let number = |at: usize| {
        Ok::<_, anyhow::Error>(usize::from(u16::from_be_bytes([byte(at)?, byte(at + 1)?])))
    };
    ensure!(byte(2)? & 0x80 != 0, "this is a query");
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = skip_name(message, at)? + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..answers {
        at = skip_name(message, at)?;
        let (kind, length) = (number(at)?, number(at + 8)?);
        let data = message
            .get(at + 10..at + 10 + length)
            .context("a record breaks off")?;
        if let (1, Ok(v4)) = (kind, <[u8; 4]>::try_from(data)) {
            addresses.push(Ipv4Addr::from(v4).into());
        } else if let (28, Ok(v6)) = (kind, <[u8; 16]>::try_from(data)) {
            addresses.push(Ipv6Addr::from(v6).into());
        }
        at += 10 + length;
    }
    Ok(Answer {
        code: byte(3)? & 0x0f,
        addresses,
    })
}

/// Answers a query with one IPv4 address, whatever the name; `None` if it is no query.
pub fn answer(query: &[u8], address: IpAddr) -> Option<Vec<u8>> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    let end = skip_name(query, 12).ok()? + 4;
    let mut message = query.get(..end)?.to_vec();
    // Response, recursion desired and available; one question, one answer, no additional records.
    message[2] = 0x81;
    message[3] = 0x80;
    message[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
    // A pointer to the question's name, type A, class IN, 60 seconds, four bytes.
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address.octets());
    Some(message)
}

/// Answers a query by what a name leads to, addresses of the kind that is asked for for a minute; a name that leads nowhere
/// does not exist. `None` if it is no query.
pub fn answer_by(query: &[u8], leads_to: impl Fn(&str) -> Vec<IpAddr>) -> Option<Vec<u8>> {
    let end = skip_name(query, 12).ok()? + 4;
    let kind = *query.get(end - 3)?;
    let found = leads_to(&name(query)?);
    if found.is_empty() {
        return deny(query);
    }
    let mut message = query.get(..end)?.to_vec();
    message[2] = 0x81;
    message[3] = 0x80;
    let records = found.iter().map(|address| match address {
        IpAddr::V4(v4) => (Kind::A as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (Kind::Aaaa as u8, v6.octets().to_vec()),
    });
    let records: Vec<_> = records.filter(|(of, _)| *of == kind).collect();
    let count = u8::try_from(records.len()).ok()?;
    message[4..12].copy_from_slice(&[0, 1, 0, count, 0, 0, 0, 0]);
    for (of, data) in records {
        let length = u8::try_from(data.len()).ok()?;
        message.extend([0xc0, 12, 0, of, 0, 1, 0, 0, 0, 60, 0, length]);
        message.extend(data);
    }
    Some(message)
}

/// The name that a query is about, in lower case.
pub fn name(query: &[u8]) -> Option<String> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        if length == 0 {
            return Some(labels.join("."));
        }
        let label = query.get(at + 1..at + 1 + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + length;
    }
}

/// Answers a query with "no such name", as a cluster's resolver does for most of a search list; `None` if it is no
/// query.
pub fn deny(query: &[u8]) -> Option<Vec<u8>> {
    let end = skip_name(query, 12).ok()? + 4;
    let mut message = query.get(..end)?.to_vec();
    // Response, recursion desired and available, NXDOMAIN; one question and nothing else.
    message[2] = 0x81;
    message[3] = 0x83;
    message[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    Some(message)
}

/// Where a name ends; a pointer ends it (RFC 1035 §4.1.4).
fn skip_name(message: &[u8], mut at: usize) -> Result<usize> {
    loop {
        let length = *message.get(at).context("a name breaks off")?;
        match length {
            0 => return Ok(at + 1),
            0xc0.. => return Ok(at + 2),
            _ => at += 1 + usize::from(length),
        }
    }
}
