//! Endless pseudo-random bytes that both ends can compute, so that gigabytes are compared without being kept.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};

/// Bytes made and compared at a time.
const CHUNK: usize = 256 * 1024;

/// A stream of bytes decided by its seed (the splitmix64 generator).
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let z = (z ^ (z >> 31)).to_le_bytes();
            word.copy_from_slice(&z[..word.len()]);
        }
    }
}

/// Sends the first `length` bytes of a pattern.
///
/// # Errors
/// If the connection breaks.
pub fn send(mut stream: &TcpStream, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        pattern.fill(&mut buffer[..now]);
        let sent = length - left;
        stream
            .write_all(&buffer[..now])
            .with_context(|| format!("after {sent} of {length} bytes"))?;
        left -= now as u64;
    }
    Ok(())
}

/// Receives `length` bytes and compares each with the pattern.
///
/// # Errors
/// If the connection breaks or a byte differs; says where.
pub fn expect(mut stream: &TcpStream, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut received, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut left = length;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let done = length - left;
        stream
            .read_exact(&mut received[..now])
            .with_context(|| format!("after {done} of {length} bytes"))?;
        pattern.fill(&mut wanted[..now]);
        let different = received[..now]
            .iter()
            .zip(&wanted[..now])
            .position(|(got, want)| got != want);
        ensure!(
            different.is_none(),
            "byte {} differs",
            done + different.unwrap_or(0) as u64
        );
        left -= now as u64;
    }
    Ok(())
}
