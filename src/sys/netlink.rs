//! Route netlink: links, addresses, routes, neighbours.
