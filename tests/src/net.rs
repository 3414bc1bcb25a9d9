//! What runs inside pods: servers, clients, patterns of bytes, HTTP, and the few system calls std has not.

pub mod dns;
pub mod h2c;
pub mod http;
pub mod pattern;
pub mod serve;
pub mod service;
pub mod sys;

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long any single read, write or connect in a scenario may take.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Connects, with deadlines on everything that follows.
///
/// # Errors
/// What the kernel says.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    patient(&stream)?;
    Ok(stream)
}

/// Puts deadlines on a stream's reads and writes.
///
/// # Errors
/// What the kernel says.
pub fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Reads exactly as many bytes.
///
/// # Errors
/// If the stream ends or stalls first.
pub fn read_exactly(mut stream: &TcpStream, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream
        .read_exact(&mut bytes)
        .with_context(|| format!("{length} bytes expected"))?;
    Ok(bytes)
}

/// Reads to the end of the stream.
///
/// # Errors
/// If it stalls or is reset.
pub fn read_to_end(mut stream: &TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .context("the end of the stream was expected")?;
    Ok(bytes)
}
