//! Plain bytes: requests and responses, and streams.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Meter;
use crate::bench::bulk;
use crate::bench::wire::{DOWNLOAD, RequestHead, UPLOAD, filler};

/// How often the receiver of a stream tells what it has.
const TELL: Duration = Duration::from_millis(50);

/// Most of a payload that is read at once.
const BLOCK: usize = 64 * 1024;

/// Answers requests until the client closes or asks for the last one.
pub(super) async fn answer(mut stream: TcpStream, meter: &Meter) -> io::Result<()> {
    let mut head = [0; RequestHead::LENGTH];
    let mut buffer = Vec::new();
    loop {
        if let Err(error) = stream.read_exact(&mut head).await {
            let is_end = error.kind() == io::ErrorKind::UnexpectedEof;
            return if is_end { Ok(()) } else { Err(error) };
        }
        let head = RequestHead::decode(head);
        let mut left = usize_of(head.payload);
        // Grows to what this client sends; an idle connection costs none of it.
        buffer.resize(left.min(BLOCK), 0);
        while left > 0 {
            let most = left.min(buffer.len());
            let read = stream.read(&mut buffer[..most]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read;
        }
        // Counted before the client can know: whoever has all answers finds all of them counted.
        meter.request(head.payload.into(), head.response.into());
        let mut left = usize_of(head.response);
        while left > 0 {
            let block = filler(left.min(BLOCK));
            stream.write_all(&block).await?;
            left -= block.len();
        }
        if head.is_last {
            return stream.shutdown().await;
        }
    }
}

/// Receives or sends as the first byte says.
pub(super) async fn stream(mut stream: TcpStream, meter: &Meter) -> io::Result<()> {
    let way = stream.read_u8().await?;
    meter.request(0, 0);
    match way {
        UPLOAD => receive(stream, meter).await,
        DOWNLOAD => send(stream, meter).await,
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn receive(mut stream: TcpStream, meter: &Meter) -> io::Result<()> {
    let mut buffer = vec![0; bulk::BLOCK];
    let mut total = 0u64;
    let mut told = Instant::now();
    loop {
        let read = stream.read(&mut buffer).await?;
        total += read as u64;
        meter
            .bytes_received
            .fetch_add(read as u64, Ordering::Relaxed);
        if read == 0 || told.elapsed() >= TELL {
            told = Instant::now();
            stream.write_all(&total.to_be_bytes()).await?;
        }
        if read == 0 {
            return stream.shutdown().await;
        }
    }
}

async fn send(mut stream: TcpStream, meter: &Meter) -> io::Result<()> {
    let block = vec![b'x'; bulk::BLOCK];
    loop {
        // Ends with the error that a closed connection gives.
        let written = stream.write(&block).await?;
        meter
            .bytes_sent
            .fetch_add(written as u64, Ordering::Relaxed);
    }
}

fn usize_of(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
