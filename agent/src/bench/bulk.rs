//! Streams of bytes, as fast as they go; the receiver's count is what is reported.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::failure::Failure;
use super::report::{BulkReport, by, float};
use super::tally::Window;
use super::wire::{DOWNLOAD, UPLOAD};

/// What is written or read at once.
pub(super) const BLOCK: usize = 128 * 1024;

/// What the receiver of one stream has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    total: u64,
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Received {
    /// So many bytes had come by then.
    pub(super) fn observe(&mut self, now: Instant, total: u64, window: Window) {
        self.total = self.total.max(total);
        if now < window.begin || window.end.is_some_and(|end| now >= end) {
            return;
        }
        let seen = Some((now, total));
        self.first = self.first.or(seen);
        self.last = seen;
    }

    /// Bytes a second between the first and the last time that somebody looked while it counted.
    pub(super) fn rate(&self) -> f64 {
        let (Some((begin, before)), Some((end, after))) = (self.first, self.last) else {
            return 0.0;
        };
        let seconds = end.saturating_duration_since(begin).as_secs_f64();
        by(float(after.saturating_sub(before)), seconds)
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

/// One stream, seen by the thread that drives it and by the one that reports.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    is_upload: bool,
    received: Arc<Mutex<Received>>,
}

impl Flow {
    pub(super) fn new(is_upload: bool) -> Self {
        Self {
            is_upload,
            received: Arc::default(),
        }
    }

    /// What has been received by now.
    pub(super) fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves bytes over an open connection until the run ends.
    ///
    /// # Errors
    /// [`Failure`] if the connection ends before.
    ///
    /// # Cancel safety
    /// Dropping the future resets the connection; what was received so far stays counted.
    pub(super) async fn run(&self, stream: TcpStream, window: Window) -> Result<(), Failure> {
        let done = if self.is_upload {
            self.upload(stream, window).await
        } else {
            self.download(stream, window).await
        };
        done.map_err(|error| Failure::broken(&error))
    }

    async fn upload(&self, stream: TcpStream, window: Window) -> std::io::Result<()> {
        let (mut reader, mut writer) = stream.into_split();
        let write = async {
            writer.write_all(&[UPLOAD]).await?;
            let block = vec![b'x'; BLOCK];
            while !is_over(window) {
                writer.write_all(&block).await?;
            }
            writer.shutdown().await
        };
        let read = async {
            let mut told = [0; 8];
            loop {
                match reader.read_exact(&mut told).await {
                    Ok(_) => {
                        let total = u64::from_be_bytes(told);
                        self.received().observe(Instant::now(), total, window);
                    }
                    Err(end) if end.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::try_join!(write, read).map(drop)
    }

    async fn download(&self, mut stream: TcpStream, window: Window) -> std::io::Result<()> {
        stream.write_all(&[DOWNLOAD]).await?;
        let mut buffer = vec![0; BLOCK];
        let mut total = 0;
        while !is_over(window) {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            total += read as u64;
            self.received().observe(Instant::now(), total, window);
        }
        Ok(())
    }
}

fn is_over(window: Window) -> bool {
    window.end.is_some_and(|end| Instant::now() >= end)
}

/// What all streams moved.
pub(super) fn report(flows: &[Flow]) -> BulkReport {
    let of = |is_upload: bool| {
        let all = flows.iter().filter(move |flow| flow.is_upload == is_upload);
        all.map(|flow| *flow.received())
    };
    let gbit = |is_upload| of(is_upload).map(|received| received.rate()).sum::<f64>() * 8.0 / 1e9;
    let bytes = |is_upload| of(is_upload).map(|received| received.total()).sum();
    BulkReport {
        upload_gbit_s: gbit(true),
        download_gbit_s: gbit(false),
        uploaded_bytes: bytes(true),
        downloaded_bytes: bytes(false),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Received, Window};

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are picked to be exact")]
    fn the_rate_is_what_came_between_two_looks_that_count() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let window = Window {
            begin: start + second,
            end: Some(start + 4 * second),
        };
        let mut received = Received::default();
        // Before, within and after the time that counts.
        for (seconds, total) in [(0, 100), (1, 1_000), (2, 1_500), (3, 2_000), (5, 9_000)] {
            received.observe(start + seconds * second, total, window);
        }
        assert_eq!(received.rate(), 500.0);
        assert_eq!(received.total(), 9_000);
        assert_eq!(Received::default().rate(), 0.0);
    }
}
