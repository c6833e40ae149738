//! The daemon: sessions, the path of a callback, the upstream, the command line.
//!
//! Here: what composes `policy`, `runners` and `tunnel`. A callback is followed through `callback/`, folder order
//! being reading order; [`app`] is where the parts are put together; [`cli`] is what an operator types.

pub mod app;
mod placing;
mod leases;
pub mod store;
mod hosting;
mod callback;
pub mod session;
pub mod audit;
pub mod upstream;
pub mod gateway;
pub mod secrets;
pub mod signing;
pub mod telemetry;
pub mod config;
pub mod demo;
mod probe;
pub mod service;
pub mod daemon;
pub mod control;
mod dashboard;
pub mod cli;
