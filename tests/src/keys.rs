//! A server of key sets in a pod, whose answers a scenario changes as it goes.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use crate::lab::Pod;
use crate::net::http;
use crate::net::serve::Server;

type Pages = Arc<Mutex<BTreeMap<String, String>>>;

/// Serves JSON documents; what it has not got is not found.
pub struct KeyServer {
    pages: Pages,
    server: Option<Server>,
    pod: Pod,
    port: u16,
}

impl KeyServer {
    /// Serves nothing yet, on a port of a pod.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let mut server = Self {
            pages: Pages::default(),
            server: None,
            pod: pod.clone(),
            port,
        };
        server.come_back()?;
        Ok(server)
    }

    /// Creates or replaces a document.
    pub fn put(&self, path: &str, text: String) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(path.to_owned(), text);
    }

    /// Closes the port; the documents stay.
    pub fn go_away(&mut self) {
        self.server = None;
    }

    /// Opens the port again.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn come_back(&mut self) -> Result<()> {
        let pages = Arc::clone(&self.pages);
        let server = Server::start(&self.pod, Ipv6Addr::UNSPECIFIED, self.port, move |stream| {
            http::serve(stream, |request| {
                let pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
                match pages.get(&request.path) {
                    Some(text) => (200, "application/json", text.clone().into_bytes()),
                    None => (404, "text/plain", Vec::new()),
                }
            })
        });
        self.server = Some(server?);
        Ok(())
    }
}
