/*
 * Search from pages that are opened from the disk, where browsers refuse workers: the worker runs in a hidden frame.
 * In place of the script of the same purpose that the offline plugin would load from elsewhere.
 */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      this.listener = event => {
        if (event.source === inside) {
          const copy = new MessageEvent("message", { data: event.data })
          this.dispatchEvent(copy)
          if (this.onmessage) this.onmessage(copy)
        }
      }
      addEventListener("message", this.listener)
      inside.document.open()
      inside.document.write(`<!doctype html><html><body><script>
        postMessage = message => parent.dispatchEvent(new MessageEvent("message", { data: message, source: window }))
        importScripts = (...urls) => Promise.all(urls.map(url => new Promise((loaded, failed) => {
          const script = document.createElement("script")
          script.src = url
          script.onload = loaded
          script.onerror = failed
          document.body.append(script)
        })))
      <\/script><script src="${url}"><\/script></body></html>`)
      inside.document.close()
      this.ready = new Promise(loaded => inside.addEventListener("load", loaded))
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
      removeEventListener("message", this.listener)
    }
  }
}
