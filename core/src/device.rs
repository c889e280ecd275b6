//! Where the tensors live.

use candle_core::Device;

use crate::{Error, Result};

/// Parses `cpu`, `cuda` or `cuda:N` and opens that device.
///
/// # Errors
/// A name that is none of these, or a GPU that is not there or was not compiled in.
pub fn open(name: &str) -> Result<Device> {
    let index = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => 0,
        Some(("cuda", index)) => index.parse().map_err(|_| unknown(name))?,
        _ => return Err(unknown(name)),
    };
    if !cfg!(feature = "cuda") {
        return Err(Error::config(format!("device `{name}` needs a build with CUDA"))
            .hint("build with `--features cuda`, or use `--device cpu`"));
    }
    Ok(Device::new_cuda(index)?)
}

fn unknown(name: &str) -> Error {
    Error::config(format!("unknown device `{name}`: expected `cpu`, `cuda` or `cuda:N`"))
}

#[cfg(test)]
mod tests {
    use super::open;

    #[test]
    fn only_known_devices_open() {
        assert!(open("cpu").is_ok());
        for name in ["gpu", "cuda:x", "cpu:0", ""] {
            assert!(open(name).is_err(), "{name}");
        }
    }
}
