//! The one integration binary (each binary relinks RocksDB and candle).

mod chain;
mod cli;
mod gateway;
mod mining;
mod models;
mod network;
mod tidy;
