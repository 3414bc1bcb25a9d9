//! istio-cni, as far as a node's proxy knows it: it listens for the proxy, names pods to it, and puts its rules into them.

pub mod mesh;
mod rules;

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    listen, recv, sendmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use prost::Message;

use crate::lab::Pod;
use crate::net::sys;

pub use rules::{Tables, put_into, rewrite_probes, take_out_of};

/// What istio-cni allows for an answer.
const ANSWERED_WITHIN: i64 = 5;
/// How soon a proxy comes back.
const BACK_WITHIN: Duration = Duration::from_secs(20);

/// `istio.workload.zds.ZdsHello`.
#[derive(Clone, PartialEq, Message)]
struct Hello {
    #[prost(int32, tag = "1")]
    version: i32,
}

/// `AddWorkload`, and with no `info` the others that name a pod.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
}

/// `DelWorkload`.
#[derive(Clone, PartialEq, Message)]
struct Gone {
    #[prost(string, tag = "2")]
    uid: String,
}

/// `WorkloadInfo`.
#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

/// `SnapshotSent`.
#[derive(Clone, PartialEq, Message)]
struct End {}

/// `WorkloadRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Payload {
    #[prost(message, tag = "1")]
    Add(Named),
    #[prost(message, tag = "2")]
    Del(Gone),
    #[prost(message, tag = "3")]
    SnapshotSent(End),
    #[prost(message, tag = "5")]
    Keep(Named),
}

/// `WorkloadResponse`.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    ack: Option<Ack>,
}

/// `Ack`.
#[derive(Clone, PartialEq, Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

/// A node's istio-cni.
pub struct IstioCni {
    path: PathBuf,
    listener: OwnedFd,
    proxy: Option<OwnedFd>,
}

impl IstioCni {
    /// Listens at a path.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub fn listen(path: &Path) -> Result<Self> {
        let _there_was_none = fs::remove_file(path);
        let listener = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let address = UnixAddr::new(path)?;
        bind(listener.as_raw_fd(), &address)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        listen(&listener, Backlog::new(8)?)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            proxy: None,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the proxy, and for its greeting. An earlier connection is closed.
    ///
    /// # Errors
    /// If none comes, or it speaks another version.
    pub fn meet(&mut self) -> Result<()> {
        self.proxy = None;
        ensure!(
            sys::wait_readable(&self.listener, None, BACK_WITHIN)?,
            "no proxy has come"
        );
        let accepted = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just made the descriptor, and nothing else knows it.
        let proxy = unsafe { OwnedFd::from_raw_fd(accepted) };
        setsockopt(&proxy, ReceiveTimeout, &TimeVal::seconds(ANSWERED_WITHIN))?;
        self.proxy = Some(proxy);
        let hello = Hello::decode(&*self.receive()?.context("the proxy has gone")?)?;
        ensure!(hello.version == 1, "the proxy says {hello:?}");
        Ok(())
    }

    /// Names a pod, and hands its network namespace over. Gives why it is not taken; nothing if it is.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn add(&self, pod: &Pod, uid: &str) -> Result<Option<String>> {
        let netns = File::open(pod.netns().path())?;
        self.send(&add(pod, uid), &[netns.as_raw_fd()])?;
        self.answer()
    }

    /// As [`IstioCni::add`], which has to succeed.
    ///
    /// # Errors
    /// If the pod is not taken.
    pub fn take(&self, pod: &Pod, uid: &str) -> Result<()> {
        if let Some(why) = self.add(pod, uid)? {
            bail!("{uid} is not taken: {why}");
        }
        Ok(())
    }

    /// Says that a pod stays.
    ///
    /// # Errors
    /// If the answer is not yes.
    pub fn keep(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.say(Payload::Keep(Named { uid, info: None }))
    }

    /// Says that a pod is not in the mesh any more.
    ///
    /// # Errors
    /// If the answer is not yes.
    pub fn del(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.say(Payload::Del(Gone { uid }))
    }

    /// Says that all pods have been named.
    ///
    /// # Errors
    /// If the answer is not yes.
    pub fn end_list(&self) -> Result<()> {
        self.say(Payload::SnapshotSent(End {}))
    }

    /// Sends anything.
    ///
    /// # Errors
    /// If the proxy has gone.
    pub fn send(&self, packet: &[u8], descriptors: &[i32]) -> Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() {
            &[]
        } else {
            rights.as_slice()
        };
        let packet = [IoSlice::new(packet)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.proxy()?.as_raw_fd(), &packet, rights, flags, None)?;
        Ok(())
    }

    /// The proxy's answer: why not, or nothing.
    ///
    /// # Errors
    /// If it does not come in time.
    pub fn answer(&self) -> Result<Option<String>> {
        let packet = self.receive()?.context("the proxy has gone")?;
        let ack = Response::decode(&*packet)?.ack.context("an ack")?;
        Ok(Some(ack.error).filter(|error| !error.is_empty()))
    }

    /// Waits until the proxy closes the connection.
    ///
    /// # Errors
    /// If it says something instead, or nothing.
    pub fn is_left(&self) -> Result<()> {
        match self.receive()? {
            None => Ok(()),
            Some(packet) => bail!("the proxy says {packet:?}"),
        }
    }

    /// What is said of a pod, without its network namespace.
    pub fn words_for(pod: &Pod, uid: &str) -> Vec<u8> {
        add(pod, uid)
    }

    fn say(&self, payload: Payload) -> Result<()> {
        let payload = Some(payload);
        self.send(&Request { payload }.encode_to_vec(), &[])?;
        match self.answer()? {
            None => Ok(()),
            Some(why) => bail!("the proxy answers: {why}"),
        }
    }

    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut packet = vec![0; 1024];
        let length = recv(self.proxy()?.as_raw_fd(), &mut packet, MsgFlags::empty());
        packet.truncate(length.context("no answer in time")?);
        Ok(Some(packet).filter(|packet| !packet.is_empty()))
    }

    fn proxy(&self) -> Result<&OwnedFd> {
        self.proxy.as_ref().context("no proxy has come yet")
    }
}

fn add(pod: &Pod, uid: &str) -> Vec<u8> {
    let spec = pod.spec();
    let info = Info {
        name: spec.name.clone(),
        namespace: spec.namespace.clone(),
        service_account: spec.service_account.clone(),
    };
    let named = Named {
        uid: uid.to_owned(),
        info: Some(info),
    };
    let payload = Some(Payload::Add(named));
    Request { payload }.encode_to_vec()
}
