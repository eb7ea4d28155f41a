// Everything by name and over TLS: no override of any address, only a domain and whom to trust.

import { lookup } from 'node:dns/promises'

import { Sandbox, TimeoutError } from 'e2b'
import { beforeAll, describe, expect, test } from 'vitest'

import { before, create, until } from './support'

// Answers upgrades with an echo, as RFC 6455 has it, and everything else with the Host it was sent.
const SERVER = `
const { createHash } = require('node:crypto')
const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
const server = require('node:http').createServer((request, response) => {
  if (request.url !== '/events') return response.end(request.headers.host)
  response.writeHead(200, { 'Content-Type': 'text/event-stream' })
  response.write('data: first\\n\\n')
})
server.on('upgrade', (request, socket) => {
  const accept = createHash('sha1').update(request.headers['sec-websocket-key'] + GUID).digest('base64')
  const head = ['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade']
  socket.write([...head, 'Sec-WebSocket-Accept: ' + accept, '', ''].join('\\r\\n'))
  socket.on('data', (frame) => {
    const [length, mask] = [frame[1] & 127, frame.subarray(2, 6)]
    const text = frame.subarray(6, 6 + length).map((byte, at) => byte ^ mask[at % 4])
    socket.write(Buffer.concat([Buffer.from([frame[0], length]), text]))
  })
})
server.listen(8700, '127.0.0.1')
`

const resolves = await lookup('x.sbx.localhost').then(
  () => true,
  () => false,
)

describe.skipIf(!resolves)('by name', () => {
  let sandbox: Sandbox
  const domain = process.env.E2B_DOMAIN

  beforeAll(async () => {
    delete process.env.E2B_API_URL
    delete process.env.E2B_SANDBOX_URL
    sandbox = await Sandbox.create({ timeoutMs: 300_000 })
    await sandbox.files.write('/tmp/server.js', SERVER)
    await sandbox.commands.run('exec node /tmp/server.js', { background: true, timeoutMs: 0 })
    await sandbox.commands.run("until ss -Htln | grep -q ':8700 '; do sleep 0.05; done")
    return () => sandbox.kill()
  })

  test('the name of a port', () => {
    expect(sandbox.getHost(3000)).toBe(`3000-${sandbox.sandboxId}.${domain}`)
  })

  test('commands and files', async () => {
    const chunks: string[] = []
    const options = { onStdout: (chunk: string) => void chunks.push(chunk) }
    const result = await sandbox.commands.run('head -c 1000000 /dev/zero | tr "\\0" x', options)
    expect(result.stdout).toBe('x'.repeat(1_000_000))
    expect(chunks.join('')).toBe(result.stdout)
    const content = new Uint8Array(5_000_000).fill(7)
    await sandbox.files.write('large.bin', content.buffer)
    const read = await sandbox.files.read('large.bin', { format: 'bytes' })
    expect(Buffer.compare(read, content)).toBe(0)
  })

  test('terminals', async () => {
    let output = ''
    const onData = (data: Uint8Array) => void (output += new TextDecoder().decode(data))
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData })
    await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('echo $((6 * 7)); exit\n'))
    await terminal.wait()
    expect(output).toContain('42')
  })

  test('signed links, as they are', async () => {
    const form = new FormData()
    form.append('file', new Blob(['linked']), 'ignored')
    const upload = await sandbox.uploadUrl('signed ü.txt', { useSignatureExpiration: 60 })
    expect((await fetch(upload, { method: 'POST', body: form })).status).toBe(200)
    const link = await sandbox.downloadUrl('signed ü.txt')
    expect(link.startsWith(`https://49983-${sandbox.sandboxId}.${domain}/files?`)).toBe(true)
    expect(await (await fetch(link)).text()).toBe('linked')
  })

  /** Where a URL of this scheme finds the server: without TLS, on the port that TLS has. */
  const hostFor = (scheme: string) => {
    const host = sandbox.getHost(8700)
    return scheme.endsWith('s') || host.includes(':') ? host : `${host}:443`
  }

  test.for(['https', 'http'])('a server in the sandbox over %s', async (scheme) => {
    const host = hostFor(scheme)
    expect(await (await fetch(`${scheme}://${host}/`)).text()).toBe(host)
  })

  test('server-sent events arrive at once', async () => {
    const answer = await fetch(`https://${sandbox.getHost(8700)}/events`)
    const reader = answer.body!.getReader()
    const { value } = await reader.read()
    expect(new TextDecoder().decode(value)).toBe('data: first\n\n')
    await reader.cancel()
  })

  test.for(['wss', 'ws'])('WebSockets over %s', async (scheme) => {
    const socket = new WebSocket(`${scheme}://${hostFor(scheme)}/`)
    const echoed = new Promise((resolve, reject) => {
      socket.onmessage = (event) => resolve(event.data)
      socket.onerror = reject
    })
    socket.onopen = () => socket.send('hello')
    expect(await echoed).toBe('hello')
    socket.close()
  })

  // Rules: PROXY-36, TRAP-2
  test.skipIf(before('2.30.1'))('a sandbox that is killed ends its streams', async () => {
    const killed = await create()
    let output = ''
    const handle = await killed.commands.run('echo begun; sleep 600', {
      background: true,
      timeoutMs: 0,
      onStdout: (chunk) => void (output += chunk),
    })
    const outcome = handle.wait()
    outcome.catch(() => {})
    await until('output', async () => output === 'begun\n')
    await killed.kill()
    await expect(outcome).rejects.toThrow(TimeoutError)
  })
})
