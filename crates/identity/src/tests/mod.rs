//! A provider under our control, and what must be refused when it lies.

mod access_tokens;
mod code_flow;
mod dialects;
mod foreign;
mod idp;
mod lies;
mod network;
mod odd_id_tokens;
mod outages;
