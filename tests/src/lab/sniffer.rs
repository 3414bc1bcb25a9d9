//! A packet capture of one interface, sorted into the byte streams that it carried.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::netns::Netns;
use crate::net::sys;

/// Longest capture that nobody ends.
const MAX_LIFE: Duration = Duration::from_secs(15 * 60);

/// Direction and ports of one TCP or UDP stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// Sender.
    pub source: (IpAddr, u16),
    /// Receiver.
    pub destination: (IpAddr, u16),
}

/// What crossed an interface.
#[derive(Debug, Default)]
pub struct Traffic {
    flows: BTreeMap<Flow, Vec<u8>>,
    packets: u64,
}

impl Traffic {
    /// How many packets were seen.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Whether any stream carried these bytes in the clear.
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.flows
            .values()
            .any(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    }

    /// All streams with their bytes.
    pub fn flows(&self) -> impl Iterator<Item = (&Flow, &[u8])> {
        self.flows
            .iter()
            .map(|(flow, bytes)| (flow, bytes.as_slice()))
    }

    /// TLS application records sent to a port: 0x17, version 3.3, a length, as RFC 8446 §5.2 lays them out.
    ///
    /// Walks each stream from record to record, so that payload which looks like a header is not counted.
    pub fn tls_records_to(&self, port: u16) -> usize {
        let towards = self
            .flows
            .iter()
            .filter(|(flow, _)| flow.destination.1 == port);
        towards.map(|(_, bytes)| application_records(bytes)).sum()
    }

    fn add(&mut self, frame: &[u8]) {
        self.packets += 1;
        if let Some((flow, payload)) = parse(frame) {
            self.flows
                .entry(flow)
                .or_default()
                .extend_from_slice(payload);
        }
    }
}

fn application_records(mut stream: &[u8]) -> usize {
    let mut count = 0;
    while let [kind, 3, 1..=3, high, low, rest @ ..] = stream {
        count += usize::from(*kind == 0x17);
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        stream = rest.get(length..).unwrap_or_default();
    }
    count
}

/// Ethernet, then IPv4 or IPv6 without extension headers, then TCP or UDP.
fn parse(frame: &[u8]) -> Option<(Flow, &[u8])> {
    let ether_type = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = frame.get(14..)?;
    let (protocol, source, destination, segment) = match ether_type {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            // A length of 0 is what segmentation offload leaves on packets over 64 KiB.
            let end = if total == 0 {
                packet.len()
            } else {
                total.min(packet.len())
            };
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(bytes).into())
            };
            (
                *packet.get(9)?,
                address(12)?,
                address(16)?,
                packet.get(header..end)?,
            )
        }
        0x86dd => {
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(bytes).into())
            };
            (
                *packet.get(6)?,
                address(8)?,
                address(24)?,
                packet.get(40..)?,
            )
        }
        _ => return None,
    };
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *segment.get(at)?,
            *segment.get(at + 1)?,
        ]))
    };
    let header = match protocol {
        6 => usize::from(segment.get(12)? >> 4) * 4,
        17 => 8,
        _ => return None,
    };
    let flow = Flow {
        protocol,
        source: (source, port(0)?),
        destination: (destination, port(2)?),
    };
    Some((flow, segment.get(header..)?))
}

/// A running capture.
pub struct Sniffer {
    stop: UnixStream,
    thread: JoinHandle<Result<Traffic>>,
}

impl Sniffer {
    pub(crate) fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| sys::packet_socket(interface))?;
        let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
        let thread = std::thread::spawn(move || collect(&socket, &stopped));
        Ok(Self { stop, thread })
    }

    /// Ends the capture and returns what it saw.
    ///
    /// # Errors
    /// If packets were lost, because then nothing can be concluded from what is missing.
    pub fn stop(self) -> Result<Traffic> {
        drop(self.stop);
        match self.thread.join() {
            Ok(traffic) => traffic,
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }
}

fn collect(socket: &OwnedFd, stopped: &UnixStream) -> Result<Traffic> {
    let mut traffic = Traffic::default();
    let mut frame = vec![0; 256 * 1024];
    loop {
        let goes_on = sys::wait_readable(socket, Some(stopped), MAX_LIFE)?;
        while let Some(length) = sys::receive(socket, &mut frame)? {
            traffic.add(&frame[..length]);
        }
        if !goes_on {
            break;
        }
    }
    let lost = sys::packets_lost(socket)?;
    ensure!(lost == 0, "the packet capture lost {lost} packets");
    Ok(traffic)
}
