//! A name server for tests whose answers can be changed while it runs.
//!
//! A crate of its own, because the tests of `postern-common` use it as well as the end-to-end ones.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::allow_attributes,
    reason = "test support may panic: that is how a test fails"
)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

pub use hickory_proto::op::ResponseCode;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

/// What the server does when it is asked for a name.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These addresses, with this TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// NOERROR without a record.
    Empty,
    /// An error.
    Fails(ResponseCode),
    /// Nothing.
    Silence,
}

/// The running server; it ends with the runtime.
#[derive(Debug, Clone)]
pub struct TestDns {
    pub address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
}

impl TestDns {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let dns = Self {
            address: socket.local_addr().unwrap(),
            names: Arc::default(),
            asked: Arc::default(),
        };
        tokio::spawn(dns.clone().serve(socket));
        dns
    }

    /// `name` without a final dot.
    pub fn set(&self, name: &str, answer: Answer) {
        self.names.lock().unwrap().insert(name.to_owned(), answer);
    }

    pub fn set_addresses(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.set(name, Answer::Addresses(addresses, 1));
    }

    /// How often a name was asked for, whatever the type.
    pub fn asked(&self, name: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(asked, _)| asked == name)
            .count()
    }

    async fn serve(self, socket: UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            if let Some(answer) = self.answer(&question) {
                socket
                    .send_to(&answer.to_vec().unwrap(), client)
                    .await
                    .unwrap();
            }
        }
    }

    fn answer(&self, question: &Message) -> Option<Message> {
        let query = question.queries[0].clone();
        let name = query.name().to_ascii();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.asked
            .lock()
            .unwrap()
            .push((name.clone(), query.query_type()));
        let known = self.names.lock().unwrap().get(&name).cloned();
        let mut answer = Message::new(
            question.metadata.id,
            MessageType::Response,
            question.metadata.op_code,
        );
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        match known.unwrap_or(Answer::Fails(ResponseCode::NXDomain)) {
            Answer::Silence => return None,
            Answer::Empty => {}
            Answer::Fails(code) => answer.metadata.response_code = code,
            Answer::Addresses(addresses, ttl) => {
                for address in addresses {
                    let data = match (address, query.query_type()) {
                        (IpAddr::V4(v4), RecordType::A) => RData::A(A(v4)),
                        (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(AAAA(v6)),
                        _ => continue,
                    };
                    answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                }
            }
        }
        Some(answer)
    }
}
