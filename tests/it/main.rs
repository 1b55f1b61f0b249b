//! The one integration binary (each binary relinks RocksDB and candle).

mod cli;
mod network;
mod tidy;
