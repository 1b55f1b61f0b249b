//! The one integration binary (each binary relinks RocksDB and candle).

mod tidy;
