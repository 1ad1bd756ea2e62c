//! towline-grpc.
