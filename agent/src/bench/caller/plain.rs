//! Requests of plain bytes: on a connection that stays, or each on its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Callee;
use crate::bench::failure::Failure;
use crate::bench::plan::Protocol;
use crate::bench::tally::Moved;
use crate::bench::wire::{RequestHead, filler};

/// Most that is read at once.
const BLOCK: usize = 64 * 1024;

/// Asks the benchmark's own server.
pub(in crate::bench) struct PlainCaller {
    callee: Arc<Callee>,
    stream: Option<TcpStream>,
    request: Bytes,
    buffer: Vec<u8>,
    is_last: bool,
}

impl PlainCaller {
    pub(super) fn new(callee: Arc<Callee>) -> Self {
        let plan = &callee.plan;
        let is_last = plan.protocol == Protocol::Connect;
        let head = RequestHead {
            // The command line takes no larger sizes.
            payload: u32::try_from(plan.payload).unwrap_or(u32::MAX),
            response: u32::try_from(plan.response).unwrap_or(u32::MAX),
            is_last,
        };
        let mut request = BytesMut::with_capacity(RequestHead::LENGTH + plan.payload);
        request.put_slice(&head.encode());
        request.put_slice(&filler(plan.payload));
        let buffer = vec![0; plan.response.clamp(1, BLOCK)];
        Self {
            callee,
            stream: None,
            request: request.freeze(),
            buffer,
            is_last,
        }
    }

    pub(super) async fn prepare(&mut self) -> Result<Option<Duration>, Failure> {
        if self.is_last {
            return Ok(None);
        }
        let (stream, took) = self.callee.dial().await?;
        self.stream = Some(stream);
        Ok(Some(took))
    }

    pub(super) async fn call(&mut self) -> Result<Moved, Failure> {
        let (mut stream, connected) = if let Some(stream) = self.stream.take() {
            (stream, None)
        } else {
            let (stream, took) = self.callee.dial().await?;
            (stream, Some(took))
        };
        let broken = |error: std::io::Error| Failure::broken(&error);
        stream.write_all(&self.request).await.map_err(broken)?;
        let mut left = self.callee.plan.response;
        while left > 0 {
            let most = left.min(self.buffer.len());
            let read = stream
                .read(&mut self.buffer[..most])
                .await
                .map_err(broken)?;
            if read == 0 {
                return Err(Failure::Length);
            }
            left -= read;
        }
        if self.is_last {
            // The server closes first, so that the waiting states of closed connections are spread over clients' ports
            // at its end, and do not use up the ports at this one. The end belongs to a connection's life.
            if stream.read(&mut self.buffer[..1]).await.map_err(broken)? > 0 {
                return Err(Failure::Length);
            }
        } else {
            self.stream = Some(stream);
        }
        let plan = &self.callee.plan;
        Ok(Moved {
            sent: plan.payload as u64,
            received: plan.response as u64,
            connected,
        })
    }

    pub(super) fn reset(&mut self) {
        self.stream = None;
    }
}
