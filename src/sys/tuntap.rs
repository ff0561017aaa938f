//! TAP devices with virtio-net headers.
