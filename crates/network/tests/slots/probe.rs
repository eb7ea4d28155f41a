//! What runs inside a slot, as its root: `probe USER_NS NET_NS COMMAND ...` prints one line, or for
//! commands that go on, one for each line it reads.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query},
    rr::RecordType,
};
use nix::{
    sched::{CloneFlags, setns},
    unistd::{Gid, Uid, setgid, setuid},
};

const PATIENCE: Duration = Duration::from_secs(5);
const NAME_SERVER: &str = "169.254.0.22:53";

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [user, net, command @ ..] = arguments else { return ExitCode::FAILURE };
    let (user, net) = (File::open(user).unwrap(), File::open(net).unwrap());
    setns(user, CloneFlags::CLONE_NEWUSER).unwrap();
    setns(net, CloneFlags::CLONE_NEWNET).unwrap();
    setgid(Gid::from_raw(0)).unwrap();
    setuid(Uid::from_raw(0)).unwrap();
    let outcome = match command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tcp", address] => tcp(address),
        ["talk", address] => talk(address),
        ["listen", address] => listen(address),
        ["udp", address, text] => udp(address, text),
        ["flood", address] => flood(address),
        ["scan", address] => scan(address),
        ["dns", transport, name] => dns(transport, name),
        ["ping", address] => ping(address),
        ["forge", source, address, text] => forge(source, address, text),
        ["read", path] => fs::read_to_string(path),
        ["write", path, text] => fs::write(path, text).map(|()| "written".to_owned()),
        _ => return ExitCode::FAILURE,
    };
    println!("{}", outcome.unwrap_or_else(|error| format!("{:?}", error.kind())));
    ExitCode::SUCCESS
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(stream)
}

/// Prints what the server calls us.
fn tcp(address: &str) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(connect(address)?).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Keeps one connection and sends every line over it; prints `ok` when it comes back.
fn talk(address: &str) -> io::Result<String> {
    let mut stream = connect(address)?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    println!("{}", answers.next().unwrap()?);
    for line in io::stdin().lock().lines() {
        let line = line?;
        writeln!(stream, "{line}")?;
        match answers.next() {
            Some(Ok(answer)) if answer == line => println!("ok"),
            _ => println!("cut"),
        }
    }
    Ok(String::new())
}

/// Listens, says so, and serves for ever like the servers outside.
fn listen(address: &str) -> io::Result<String> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let own = stream.local_addr()?;
        // Until the client closes, which it may do before it has read.
        let _ = writeln!(stream, "{own}").and_then(|()| stream.read(&mut [0]));
    }
    Ok(String::new())
}

fn udp(address: &str, text: &str) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    socket.send(text.as_bytes())?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Sends datagrams without end, whatever becomes of them.
fn flood(address: &str) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    println!("sending");
    loop {
        let _ = socket.send_to(b"x", address);
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Sends a datagram to one port after the other; prints how many left, and why the next did not.
fn scan(address: &str) -> io::Result<String> {
    let address: Ipv4Addr = address.parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for (sent, port) in (1024..=u16::MAX).enumerate() {
        if let Err(error) = socket.send_to(b"x", (address, port)) {
            return Ok(format!("{sent} {:?}", error.kind()));
        }
    }
    Ok("all".to_owned())
}

/// Prints the answer code, `truncated` if so, and the records.
fn dns(transport: &str, name: &str) -> io::Result<String> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.parse().unwrap(), RecordType::A));
    let bytes = query.to_vec().unwrap();
    let answer = if transport == "tcp" {
        let mut stream = TcpStream::connect(NAME_SERVER)?;
        stream.set_read_timeout(Some(PATIENCE * 3))?;
        stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes())?;
        stream.write_all(&bytes)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        answer
    } else {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE * 3))?;
        socket.connect(NAME_SERVER)?;
        socket.send(&bytes)?;
        let mut answer = vec![0; 65_535];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        answer
    };
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    assert_eq!(answer.metadata.id, query.metadata.id, "not our answer");
    let mut words = vec![format!("{:?}", answer.metadata.response_code)];
    words.extend(answer.metadata.truncation.then(|| "truncated".to_owned()));
    words.extend(answer.answers.iter().map(|record| record.data.to_string()));
    Ok(words.join(" "))
}

/// Pings as a program without privileges does: by a datagram socket.
fn ping(address: &str) -> io::Result<String> {
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor; datagram sockets share one interface.
    #[allow(unsafe_code)]
    let socket = unsafe { UdpSocket::from_raw_fd(fd) };
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(SocketAddr::new(address.parse().unwrap(), 0))?;
    // Echo request; the kernel fills in the identifier and the checksum.
    socket.send(&[8, 0, 0, 0, 0, 0, 0, 1, b'a'])?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(if answer[0] == 0 && length == 9 { "pong" } else { "something else" }.to_owned())
}

/// Puts a UDP datagram with a source of our choice straight onto eth0, past our own NAT.
fn forge(source: &str, address: &str, text: &str) -> io::Result<String> {
    let SocketAddr::V4(target) = address.parse().unwrap() else { panic!("IPv4 only") };
    let packet = datagram(source.parse().unwrap(), *target.ip(), target.port(), text.as_bytes());
    let index = nix::net::if_::if_nametoindex("eth0")?;
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor.
    #[allow(unsafe_code)]
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: i32::try_from(index).unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        // The host end's address, the same for every slot.
        sll_addr: [0x02, 0xa7, 0x01, 0, 0, 1, 0, 0],
    };
    // SAFETY: both pointers are to live values of the sizes given.
    #[allow(unsafe_code)]
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok("sent".to_owned()) }
}

/// An IPv4 packet with a UDP datagram that has no checksum.
fn datagram(source: Ipv4Addr, target: Ipv4Addr, port: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + data.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    let sum: u32 =
        packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(4000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((length - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(data);
    packet
}
