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
export const shared = () => Sandbox.create({ timeoutMs: 300_000 })

/** Polls until `check` returns something true. */
export async function until<T>(what: string, check: () => Promise<T>, ms = 20_000): Promise<T> {
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
