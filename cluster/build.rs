//! Compiles the protos with protox: no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/etcd.proto";
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(protox::compile([file], ["."])?)?;
    println!("cargo:rerun-if-changed={file}");
    Ok(())
}
