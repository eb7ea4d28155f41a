import http from 'node:http'

import { Sandbox } from 'e2b'
import { onTestFinished } from 'vitest'

type CreateOptions = NonNullable<Parameters<typeof Sandbox.create>[0]>

/** Whether the SDK is older than the release that brought what a test is about. */
export function before(release: string): boolean {
  const parts = (version: string) => version.split('.').map(Number)
  const [ours, theirs] = [parts(process.env.E2B_SDK ?? ''), parts(release)]
  const at = ours.findIndex((part, index) => part !== theirs[index])
  return at >= 0 && ours[at] < theirs[at]
}

/** A sandbox that ends with the test. */
export async function create(options: object = {}): Promise<Sandbox> {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options } as CreateOptions)
  onTestFinished(async () => {
    await sandbox.kill()
  })
  return sandbox
}

/** A sandbox that the tests of one file share; they must not disturb each other. */
export const shared = () => Sandbox.create({ timeoutMs: 3_600_000 })

/** Polls until `check` returns something true. */
export async function until<T>(what: string, check: () => Promise<T>, ms = 60_000): Promise<T> {
  const deadline = Date.now() + ms
  for (;;) {
    const value = await check()
    if (value) return value
    if (Date.now() > deadline) throw new Error(`timed out waiting for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** The name of a port of a sandbox, which needs no DNS: it goes into the Host header. */
export const hostOf = (sandbox: Sandbox, port: number) => `${port}-${sandbox.sandboxId}.sbx.localhost`

/** GET through the proxy by name; `fetch` would not let us set Host. */
export function get(host: string, path = '/'): Promise<{ status: number; body: string }> {
  const url = new URL(path, process.env.E2B_SANDBOX_URL)
  return new Promise((resolve, reject) => {
    const request = http.get(url, { headers: { Host: host } }, (response) => {
      let body = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => (body += chunk))
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body }))
      response.on('error', reject)
    })
    request.on('error', reject)
  })
}

/** Ids of all sandboxes that match, over all pages. */
export async function listed(query: NonNullable<Parameters<typeof Sandbox.list>[0]>['query']) {
  const pages = Sandbox.list({ query })
  const ids: string[] = []
  while (pages.hasNext) ids.push(...(await pages.nextItems()).map((info) => info.sandboxId))
  return ids
}

const COUNTER = `
import http.server, os, threading, time
count = 0
def go_on():
    global count
    while True:
        count += 1
        time.sleep(0.01)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.getpid()} {count}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
threading.Thread(target=go_on, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
`

/** Starts a process that counts in memory, and says on port 8000 how far it is. */
export async function count(sandbox: Sandbox) {
  await sandbox.files.write('/tmp/counter.py', COUNTER)
  const command = 'exec python3 /tmp/counter.py'
  const handle = await sandbox.commands.run(command, { background: true, timeoutMs: 0 })
  // When a pause cuts a stream off, the SDK asks the sandbox for its health, and wakes it.
  await handle.disconnect()
  const look = async () => {
    const answer = await get(hostOf(sandbox, 8000))
    if (answer.status !== 200) throw new Error(`${answer.status}: ${answer.body}`)
    const [pid, count] = answer.body.split(' ').map(Number)
    return { pid, count }
  }
  await until('the counter', () => look().catch(() => undefined))
  let last = await look()
  return {
    /** Asserts that it is the same process, and that it counts on from where it was. */
    async wentOn() {
      const now = await look()
      if (now.pid !== last.pid || now.count < last.count) {
        throw new Error(`it was ${JSON.stringify(last)} and is ${JSON.stringify(now)}`)
      }
      last = now
      await until('it to count on', async () => (await look()).count > now.count)
    },
  }
}
