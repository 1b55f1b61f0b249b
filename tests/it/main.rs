//! The one integration binary (each binary relinks RocksDB and candle).

mod chain;
mod cli;
mod gateway;
mod network;
mod tidy;
