//! Waiting for a point in time to the microsecond: tokio's own timers know milliseconds only.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer of the kernel's, which wakes without slack.
pub(super) struct Alarm(AsyncFd<Timer>);

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// Called within a runtime.
    ///
    /// # Errors
    /// If this process may not open one more file.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        #[expect(
            deprecated,
            reason = "sound for what owns one descriptor and never gives it away, as this does; the new one is unsafe code"
        )]
        let registered = AsyncFd::with_interest(Timer(timer), Interest::READABLE)?;
        Ok(Self(registered))
    }

    /// Returns at `time`, or at once if it has passed.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a timer that the next call sets anew.
    pub(super) async fn until(&self, time: Instant) -> io::Result<()> {
        loop {
            let left = time.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let nanoseconds = i64::try_from(left.as_nanos()).unwrap_or(i64::MAX);
            let expiration = Expiration::OneShot(TimeSpec::nanoseconds(nanoseconds));
            let timer = &self.0.get_ref().0;
            timer.set(expiration, TimerSetTimeFlags::empty())?;
            let mut fired = false;
            while !fired {
                let mut guard = self.0.readable().await?;
                match timer.wait() {
                    Ok(()) => fired = true,
                    // Readiness of an earlier setting.
                    Err(Errno::EAGAIN) => {}
                    Err(errno) => return Err(errno.into()),
                }
                guard.clear_ready();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Alarm;

    #[tokio::test]
    async fn an_alarm_is_never_early_and_may_be_set_again() {
        let alarm = Alarm::new().unwrap();
        for micros in [300, 0, 700] {
            let time = Instant::now() + Duration::from_micros(micros);
            alarm.until(time).await.unwrap();
            assert!(Instant::now() >= time);
        }
        // One that was given up does not wake the next one early.
        let long = alarm.until(Instant::now() + Duration::from_millis(20));
        assert!(
            tokio::time::timeout(Duration::from_millis(1), long)
                .await
                .is_err()
        );
        let time = Instant::now() + Duration::from_millis(40);
        alarm.until(time).await.unwrap();
        assert!(Instant::now() >= time);
    }
}
