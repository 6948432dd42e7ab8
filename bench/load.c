/* The load client: many STOMP-over-WebSocket clients in one thread, which check everything that they receive. With
 * --stream PATH they are readers of event streams (Server-Sent Events) instead.
 *
 * Connects (upgrade, CONNECT, SUBSCRIBE up to its RECEIPT; or one GET up to the event `subscribed`), reports to the server's producer how many events all its
 * readers have, measures for a while, prints one line of JSON and ends. A Python client would be the bottleneck. It
 * depends on the wire contract only, so it works with every server of the benchmark.
 *
 * Kinds of clients, in this order of their numbers: dead (never read after their RECEIPT), slow (read a few bytes at
 * a time), coming and going (reconnect and resume all the time), readers (the rest). Only readers count for
 * deliveries, latency and progress; all but the dead are checked: each position once, in order.
 *
 * Progress goes to a pipe as records of 8 octets (a number in the machine's order): how many events every reader has
 * received. The first record, 0, starts the producer; the end of the pipe ends it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "program.h"

enum {
    SCRATCH_BYTES = 1 << 20,
    EVENTS_PER_WAIT = 1024,
    EPOCH_CHARS = 6,
    LATENCY_STEP_NS = 10000,
    LATENCY_STEPS = 1000000, /* up to 10 s; higher latencies count as that */
    REACHED_RING = 1 << 20,  /* how many events the fastest reader may be ahead of the slowest */
    SLOW_TICK_MS = 50,
    SAMPLE_MS = 100,
    COMPLAINTS_MAX = 3,
};

enum kind { DEAD, SLOW, COMING_AND_GOING, READER };
enum phase { ABSENT, CONNECTING, UPGRADING, GREETING, SUBSCRIBING, SUBSCRIBED, GONE };

struct client {
    int fd;
    unsigned number;
    enum kind kind;
    enum phase phase;
    char *held; /* the beginning of an incomplete frame */
    size_t held_bytes;
    char epoch[EPOCH_CHARS];
    bool has_position;
    uint64_t offset;      /* of the newest event, or where the subscription started */
    uint64_t in_sequence; /* the number in its body, if each client has its own destination */
    uint64_t received;
    int64_t leaves_at_ns;
    unsigned lives;
};

static long port, clients_count = 100, at_once = 64, dead_count, slow_count, visitors_count, settle_ms = 500,
            warm_up_ms = 500, measure_ms = 3000, connect_timeout_ms = 60000, slow_bytes = 2048, visit_ms = 300, ping_ms,
            progress_fd = -1, progress_every = 1, own_destinations, deliveries_max, server_pid, announce;
static const char *host = "127.0.0.1", *path = "/ws.communication", *destination = "/events", *subscription = "0",
                  *replay = "none", *last_event_id = "", *stream = "";

static struct client *clients;
static struct sockaddr_in address;
static int poller;
static char scratch[SCRATCH_BYTES];
static uint32_t latencies[LATENCY_STEPS], reached[REACHED_RING];
static long subscribed, connecting, readers_here;
static uint64_t done, reported; /* events that all readers have; the last number that the producer received */
static bool measuring;
static int64_t went_at_ns, first_ns, last_ns;

static struct {
    uint64_t deliveries, bytes, reads, gaps, missing, duplicates, malformed, foreign_epochs, errors, lost, pongs;
    uint64_t heart_beats, resumes, slow_received, visitors_received, dead_cut, slow_cut, before;
    double latest_cut_ms, latency_max_ms;
} seen;

static void complain(const char *what, const char *data, size_t size) {
    static int complaints;
    if (complaints++ < COMPLAINTS_MAX) fprintf(stderr, "%s: %.*s\n", what, (int)(size < 300 ? size : 300), data);
}

/* -- the server's process -- */

static double server_cpu_s(void) {
    char name[64], line[2048];
    snprintf(name, sizeof name, "/proc/%ld/stat", server_pid);
    FILE *file = server_pid ? fopen(name, "r") : NULL;
    if (!file) return 0;
    size_t size = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[size] = 0;
    unsigned long user = 0, kernel = 0;
    char *rest = strrchr(line, ')');
    if (rest) sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
    return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static long server_rss_kib(void) {
    char name[64];
    snprintf(name, sizeof name, "/proc/%ld/statm", server_pid);
    FILE *file = server_pid ? fopen(name, "r") : NULL;
    if (!file) return 0;
    long pages = 0;
    if (fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* -- progress -- */

static void count_reached(struct client *client) {
    uint64_t number = ++client->received;
    if (progress_fd < 0) return; /* no producer waits for it */
    if (number - done >= REACHED_RING) refuse("a reader", "is too far ahead of another");
    reached[number % REACHED_RING]++;
    while (reached[(done + 1) % REACHED_RING] >= (uint64_t)readers_here && readers_here)
        reached[++done % REACHED_RING] = 0;
}

static void forget_reached(struct client *client) {
    for (uint64_t number = done + 1; progress_fd >= 0 && number <= client->received; number++)
        reached[number % REACHED_RING]--;
    readers_here--;
}

static void tell_progress(uint64_t least) {
    if (progress_fd < 0 || done - reported < least) return;
    uint64_t events = done * (uint64_t)(own_destinations ? clients_count : 1);
    if (write((int)progress_fd, &events, sizeof events) == sizeof events)
        reported = done;
    else if (errno != EAGAIN) /* the producer has ended: the sockets will show it */
        progress_fd = -1;
}

/* -- one client -- */

static void leave(struct client *client) {
    if (client->phase == SUBSCRIBED) subscribed--;
    if (client->phase > ABSENT && client->phase < SUBSCRIBED) connecting--;
    close(client->fd); /* which removes it from the poller */
    free(client->held);
    client->held = NULL;
    client->held_bytes = 0;
    client->phase = GONE;
}

/* The server ended the connection. */
static void lose(struct client *client) {
    if (client->phase == SUBSCRIBED && client->kind == READER) forget_reached(client);
    if (client->kind == DEAD && client->phase == SUBSCRIBED) {
        seen.dead_cut++;
        seen.latest_cut_ms = (double)(now_ns() - went_at_ns) / NS_PER_MS;
    } else if (client->kind == SLOW && client->phase == SUBSCRIBED) {
        seen.slow_cut++;
    } else {
        seen.lost++;
    }
    leave(client);
}

static void watch(struct client *client, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event)) fail("epoll_ctl");
}

/* Send a small masked frame; the socket's buffer has room, because little is sent. */
static void send_message(struct client *client, int opcode, const char *data, size_t size) {
    static const unsigned char mask[4] = {0x5a, 0x17, 0xc3, 0x88};
    unsigned char frame[2048 + 8];
    size_t at = 0;
    frame[at++] = (unsigned char)(0x80 | opcode);
    if (size < 126) {
        frame[at++] = (unsigned char)(0x80 | size);
    } else {
        frame[at++] = 0x80 | 126;
        frame[at++] = (unsigned char)(size >> 8);
        frame[at++] = (unsigned char)size;
    }
    memcpy(frame + at, mask, 4);
    at += 4;
    for (size_t i = 0; i < size; i++) frame[at++] = (unsigned char)(data[i] ^ mask[i % 4]);
    if (send(client->fd, frame, at, MSG_NOSIGNAL) != (ssize_t)at) lose(client);
}

static void numbered(char *out, size_t room, const char *text, unsigned number) {
    const char *mark = strstr(text, "%d");
    if (mark)
        snprintf(out, room, "%.*s%u%s", (int)(mark - text), text, number, mark + 2);
    else
        snprintf(out, room, "%s", text);
}

static void subscribe(struct client *client) {
    char frame[2048], id[128], where[512], from[256] = "";
    numbered(id, sizeof id, subscription, client->number);
    numbered(where, sizeof where, destination, client->number);
    if (client->has_position)
        snprintf(from, sizeof from, "last-event-id:%.*s-%lu\n", EPOCH_CHARS, client->epoch, client->offset);
    else if (*last_event_id)
        snprintf(from, sizeof from, "last-event-id:%s\n", last_event_id);
    int size = snprintf(frame, sizeof frame, "SUBSCRIBE\nid:%s\ndestination:%s\nack:auto\nreceipt:s\nreplay:%s\n%s\n",
                        id, where, replay, from);
    client->phase = SUBSCRIBING;
    send_message(client, 1, frame, (size_t)size + 1);
}

static void begin(struct client *client) {
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) fail("socket");
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail("connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = client};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, client->fd, &event)) fail("epoll_ctl");
    client->phase = CONNECTING;
    client->lives++;
    connecting++;
}

/* Request a WebSocket, or an event stream. */
static void upgrade(struct client *client) {
    char request[1024], where[512], from[256] = "";
    numbered(where, sizeof where, stream, client->number);
    if (client->has_position)
        snprintf(from, sizeof from, "Last-Event-ID: %.*s-%lu\r\n", EPOCH_CHARS, client->epoch, client->offset);
    else if (*last_event_id)
        snprintf(from, sizeof from, "Last-Event-ID: %s\r\n", last_event_id);
    int size = *stream ? snprintf(request, sizeof request, "GET %s%s%s HTTP/1.1\r\nHost: %s:%ld\r\n%s\r\n", where,
                                  *replay ? "?replay=" : "", replay, host, port, from)
                       : snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: %s:%ld\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: " WS_KEY "\r\nSec-WebSocket-Version: 13\r\n"
                        "Sec-WebSocket-Protocol: v12.stomp, v11.stomp, v10.stomp\r\n\r\n",
                        path, host, port);
    client->phase = UPGRADING;
    watch(client, EPOLLIN);
    if (send(client->fd, request, (size_t)size, MSG_NOSIGNAL) != size) lose(client);
}

static void settle_in(struct client *client, const char *data, size_t size) {
    const char *mark = *stream ? "\"position\":\"" : "\nposition:";
    const char *position = memmem(data, size, mark, strlen(mark));
    if (position) position += strlen(mark);
    if (position && !client->has_position && position + EPOCH_CHARS + 1 < data + size) {
        memcpy(client->epoch, position, EPOCH_CHARS);
        client->offset = strtoull(position + EPOCH_CHARS + 1, NULL, 10);
        client->has_position = true;
    } else if (client->has_position) {
        seen.resumes++;
    }
    client->phase = SUBSCRIBED;
    connecting--;
    subscribed++;
    if (client->kind == READER && client->lives == 1) readers_here++;
    if (client->kind < COMING_AND_GOING) watch(client, 0); /* the end of the connection is reported anyway */
    client->leaves_at_ns = now_ns() + visit_ms * NS_PER_MS + (long)(client->number % 64) * NS_PER_MS;
}

/* -- received data -- */

static void check_position(struct client *client, const char *id, size_t size) {
    if (size < EPOCH_CHARS + 2 || id[EPOCH_CHARS] != '-') {
        seen.malformed++;
        return;
    }
    uint64_t offset = 0;
    for (size_t i = EPOCH_CHARS + 1; i < size; i++) offset = offset * 10 + (uint64_t)(id[i] - '0');
    if (!client->has_position) {
        memcpy(client->epoch, id, EPOCH_CHARS);
        client->has_position = true;
    } else if (memcmp(client->epoch, id, EPOCH_CHARS)) {
        seen.foreign_epochs++;
    } else if (offset <= client->offset) {
        seen.duplicates++;
    } else if (!own_destinations && offset != client->offset + 1) {
        seen.gaps++;
        seen.missing += offset - client->offset - 1;
    }
    client->offset = offset;
}

static uint64_t number_in(const char *body, size_t size, const char *key, size_t key_size) {
    const char *at = memmem(body, size, key, key_size);
    if (!at) return 0;
    uint64_t number = 0;
    for (at += key_size; at < body + size && *at >= '0' && *at <= '9'; at++)
        number = number * 10 + (uint64_t)(*at - '0');
    return number;
}

static void check_sequence(struct client *client, const char *body, size_t size) {
    uint64_t number = number_in(body, size, "\"n\":", 4);
    if (client->in_sequence && number != client->in_sequence + 1) {
        seen.gaps++;
        if (number > client->in_sequence) seen.missing += number - client->in_sequence - 1;
    }
    client->in_sequence = number;
}

static void count_latency(const char *body, size_t size, int64_t now) {
    int64_t sent_at = (int64_t)number_in(body, size, "\"t\":", 4);
    if (!sent_at) return;
    int64_t latency = now > sent_at ? now - sent_at : 0;
    int64_t step = latency / LATENCY_STEP_NS;
    latencies[step < LATENCY_STEPS ? step : LATENCY_STEPS - 1]++;
    double latency_ms = (double)latency / NS_PER_MS;
    if (latency_ms > seen.latency_max_ms) seen.latency_max_ms = latency_ms;
}

static void on_event(struct client *client, const char *id, size_t id_size, const char *body, size_t length,
                     int64_t now) {
    check_position(client, id, id_size);
    if (own_destinations) check_sequence(client, body, length);
    if (client->kind == SLOW) seen.slow_received++;
    if (client->kind == COMING_AND_GOING) seen.visitors_received++;
    if (client->kind != READER) return;
    if (!first_ns) first_ns = now;
    last_ns = now;
    count_reached(client);
    if (!measuring) {
        seen.before++;
        return;
    }
    seen.deliveries++;
    count_latency(body, length, now);
}

static void on_message(struct client *client, const char *data, size_t size, int64_t now) {
    const char *end = data + size, *line = data + 8, *id = NULL;
    size_t id_size = 0, length = 0;
    while (line < end && *line != '\n') {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        if (!next) break;
        if (next - line > 11 && !memcmp(line, "message-id:", 11)) {
            id = line + 11;
            id_size = (size_t)(next - id);
        } else if (next - line > 15 && !memcmp(line, "content-length:", 15)) {
            length = strtoul(line + 15, NULL, 10);
        }
        line = next + 1;
    }
    const char *body = line + 1;
    if (!id || body + length + 1 != end || end[-1]) { /* detects more than one frame in a message */
        seen.malformed++;
        complain("malformed", data, size);
        return;
    }
    on_event(client, id, id_size, body, length, now);
}

static void on_text(struct client *client, const char *data, size_t size, int64_t now) {
    if (size > 8 && !memcmp(data, "MESSAGE\n", 8)) {
        on_message(client, data, size, now);
    } else if (size == 1 && *data == '\n') {
        seen.heart_beats++;
    } else if (client->phase == GREETING && size > 10 && !memcmp(data, "CONNECTED\n", 10)) {
        subscribe(client);
    } else if (client->phase == SUBSCRIBING && size > 8 && !memcmp(data, "RECEIPT\n", 8)) {
        settle_in(client, data, size);
    } else if (size > 6 && !memcmp(data, "ERROR\n", 6)) {
        if (client->kind <= SLOW) return; /* a client that does not read is disconnected, and counted as cut */
        seen.errors++;
        complain("refused", data, size);
    } else {
        seen.malformed++;
        complain("malformed", data, size);
    }
}

/* Process the complete WebSocket frames at the beginning of data; return their size in octets. */
static size_t read_frames(struct client *client, const char *data, size_t size, int64_t now) {
    const unsigned char *octets = (const unsigned char *)data;
    size_t at = 0;
    while (size - at >= 2 && client->phase != GONE) {
        size_t head = 2, length = octets[at + 1] & 127;
        if (length == 126) {
            if (size - at < 4) break;
            length = (size_t)octets[at + 2] << 8 | octets[at + 3];
            head = 4;
        } else if (length == 127) {
            if (size - at < 10) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | octets[at + (size_t)i];
            head = 10;
        }
        if (length > SCRATCH_BYTES / 2) refuse("a frame of the server", "is too long");
        if (size - at < head + length) break;
        const char *payload = data + at + head;
        switch (octets[at]) { /* FIN and the opcode: the server promises not to send fragments */
            case 0x81: on_text(client, payload, length, now); break;
            case 0x88: lose(client); return size;
            case 0x89: send_message(client, 10, payload, length); break;
            case 0x8a: seen.pongs++; break;
            default: seen.malformed++;
        }
        at += head + length;
    }
    return at;
}

/* One event of a stream, without its blank line. */
static void on_stream_event(struct client *client, const char *data, size_t size, int64_t now) {
    const char *line_end = memchr(data, '\n', size);
    if (size == 1 && *data == ':') {
        seen.heart_beats++;
    } else if (size > 4 && !memcmp(data, "id: ", 4) && line_end && line_end + 7 < data + size &&
               !memcmp(line_end + 1, "data: ", 6)) {
        const char *body = line_end + 7;
        on_event(client, data + 4, (size_t)(line_end - data) - 4, body, (size_t)(data + size - body), now);
    } else if (client->phase == SUBSCRIBING && size > 18 && !memcmp(data, "event: subscribed\n", 18)) {
        settle_in(client, data, size);
    } else if (size > 18 && !memcmp(data, "event: disconnect\n", 18)) {
        if (client->kind <= SLOW) return;
        seen.errors++;
        complain("refused", data, size);
    } else if (size < 6 || memcmp(data, "retry:", 6)) {
        seen.malformed++;
        complain("malformed", data, size);
    }
}

/* Process the complete events at the beginning of data; return their size in octets. */
static size_t read_stream(struct client *client, const char *data, size_t size, int64_t now) {
    size_t at = 0;
    while (client->phase != GONE) {
        const char *end = memmem(data + at, size - at, "\n\n", 2);
        if (!end) break;
        on_stream_event(client, data + at, (size_t)(end - data) - at, now);
        at = (size_t)(end - data) + 2;
    }
    return at;
}

static size_t read_stream_head(struct client *client, const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - data) + 4;
    if (size < 12 || memcmp(data + 8, " 200", 4)) {
        complain("no stream", data, head);
        lose(client);
        return size;
    }
    client->phase = SUBSCRIBING;
    return head;
}

static size_t read_upgrade(struct client *client, const char *data, size_t size) {
    static const char connect_frame[] = "CONNECT\naccept-version:1.2\nhost:localhost\nheart-beat:0,0\n\n";
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - data) + 4;
    if (size < 12 || memcmp(data + 8, " 101", 4) || !memmem(data, head, WS_ACCEPT, strlen(WS_ACCEPT))) {
        complain("no upgrade", data, head);
        lose(client);
        return size;
    }
    client->phase = GREETING;
    send_message(client, 1, connect_frame, sizeof connect_frame);
    return head;
}

static void on_readable(struct client *client, size_t bytes_max) {
    size_t held = client->held_bytes;
    if (held) memcpy(scratch, client->held, held);
    if (bytes_max > SCRATCH_BYTES - held) bytes_max = SCRATCH_BYTES - held;
    ssize_t size = recv(client->fd, scratch + held, bytes_max, 0);
    if (size <= 0) {
        if (!size || (errno != EAGAIN && errno != EINTR)) lose(client);
        return;
    }
    int64_t now = now_ns();
    seen.reads++;
    seen.bytes += (uint64_t)size;
    size_t all = held + (size_t)size, used = 0;
    if (client->phase == UPGRADING) used = (*stream ? read_stream_head : read_upgrade)(client, scratch, all);
    if (client->phase >= GREETING && client->phase < GONE)
        used += (*stream ? read_stream : read_frames)(client, scratch + used, all - used, now);
    if (client->phase == GONE) return;
    size_t rest = all - used;
    if (rest > held) client->held = realloc(client->held, rest);
    if (rest && !client->held) fail("realloc");
    if (rest) memcpy(client->held, scratch + used, rest);
    client->held_bytes = rest;
    if (!rest) {
        free(client->held);
        client->held = NULL;
    }
}

static int poll_clients(int timeout_ms) {
    static struct epoll_event events[EVENTS_PER_WAIT];
    int count = epoll_wait(poller, events, EVENTS_PER_WAIT, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        if (client->phase == GONE) continue;
        if (client->phase == CONNECTING) {
            int fault = 0;
            socklen_t size = sizeof fault;
            getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &fault, &size);
            if (fault) {
                complain("connect", strerror(fault), strlen(strerror(fault)));
                lose(client);
            } else {
                upgrade(client);
            }
        } else if (client->kind < COMING_AND_GOING && client->phase == SUBSCRIBED) {
            lose(client); /* reset, or closed by the server: nothing else is watched */
        } else {
            on_readable(client, SCRATCH_BYTES);
        }
    }
    return count;
}

/* -- timed actions -- */

static void read_slowly(void) {
    for (long i = dead_count; i < dead_count + slow_count; i++)
        if (clients[i].phase == SUBSCRIBED) on_readable(&clients[i], (size_t)slow_bytes);
}

/* Disconnect those whose time is over, each time in another way, and reconnect at once. */
static void come_and_go(int64_t now) {
    static const char goodbye[] = "DISCONNECT\n\n";
    for (long i = dead_count + slow_count; i < dead_count + slow_count + visitors_count; i++) {
        struct client *client = &clients[i];
        if (client->phase == SUBSCRIBED && now >= client->leaves_at_ns) {
            struct linger hard = {.l_onoff = 1, .l_linger = 0};
            if (client->lives % 3 == 0) setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            if (client->lives % 3 == 1) send_message(client, 1, goodbye, sizeof goodbye);
            if (client->phase != GONE) leave(client);
            begin(client);
        }
    }
}

static void ping_everybody(void) {
    for (long i = dead_count + slow_count + visitors_count; i < clients_count; i++)
        if (clients[i].phase == SUBSCRIBED) send_message(&clients[i], 9, "", 0);
}

static double connect_all(void) {
    int64_t start = now_ns();
    long begun = 0;
    while (subscribed + (long)seen.lost < clients_count) {
        while (begun < clients_count && connecting < at_once) begin(&clients[begun++]);
        poll_clients(100);
        if (now_ns() - start > connect_timeout_ms * NS_PER_MS) {
            fprintf(stderr, "of %ld begun, %ld subscribed, %ld under way, %lu lost\n", begun, subscribed, connecting, seen.lost);
            refuse("connecting", "took too long");
        }
    }
    if (seen.lost) refuse("connecting", "some clients were refused");
    return (double)(now_ns() - start) / NS_PER_S;
}

static void idle(long for_ms) {
    for (int64_t until = now_ns() + for_ms * NS_PER_MS; now_ns() < until;) poll_clients(10);
}

static int64_t next_time_ns(int64_t due, long every_ms) { return due + every_ms * NS_PER_MS; }

/* Receive for a while; return the highest resident memory of the server that was sampled. */
static long receive(long for_ms) {
    static int64_t slow_due, ping_due, sample_due;
    int64_t until = now_ns() + for_ms * NS_PER_MS;
    long rss_max = server_rss_kib();
    for (int64_t now = now_ns(); now < until; now = now_ns()) {
        int count = poll_clients(done > reported || slow_count || visitors_count ? 1 : 10);
        tell_progress(count ? (uint64_t)progress_every : 1);
        if (slow_count && now >= slow_due) slow_due = next_time_ns(now, SLOW_TICK_MS), read_slowly();
        if (visitors_count) come_and_go(now);
        if (ping_ms && now >= ping_due) ping_due = next_time_ns(now, ping_ms), ping_everybody();
        if (now >= sample_due) {
            sample_due = next_time_ns(now, SAMPLE_MS);
            long rss = server_rss_kib();
            if (rss > rss_max) rss_max = rss;
        }
        if (deliveries_max && seen.before + seen.deliveries >= (uint64_t)deliveries_max) break;
        if (!readers_here && clients_count > dead_count + slow_count + visitors_count) break;
    }
    return rss_max;
}

static double latency_ms(double share) {
    uint64_t all = 0, passed = 0;
    for (int step = 0; step < LATENCY_STEPS; step++) all += latencies[step];
    for (int step = 0; step < LATENCY_STEPS; step++) {
        passed += latencies[step];
        if (passed && (double)passed >= share * (double)all) return (step + 0.5) * LATENCY_STEP_NS / NS_PER_MS;
    }
    return 0;
}

static double own_cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void number(const char *name, double value) {
    static const char *comma = "{";
    printf("%s\"%s\":%.15g", comma, name, value);
    comma = ",";
}

static void set_up(int count, char **words) {
    const struct option_of options[] = {
        {"host", NULL, &host}, {"port", &port, NULL}, {"path", NULL, &path}, {"clients", &clients_count, NULL},
        {"at-once", &at_once, NULL}, {"destination", NULL, &destination}, {"subscription", NULL, &subscription},
        {"own-destinations", &own_destinations, NULL}, {"replay", NULL, &replay}, {"last-event-id", NULL, &last_event_id},
        {"stream", NULL, &stream},
        {"dead", &dead_count, NULL}, {"slow", &slow_count, NULL}, {"slow-bytes", &slow_bytes, NULL},
        {"visitors", &visitors_count, NULL}, {"visit-ms", &visit_ms, NULL}, {"ping-ms", &ping_ms, NULL},
        {"settle-ms", &settle_ms, NULL}, {"warm-up-ms", &warm_up_ms, NULL}, {"measure-ms", &measure_ms, NULL},
        {"connect-timeout-ms", &connect_timeout_ms, NULL}, {"deliveries-max", &deliveries_max, NULL},
        {"progress-fd", &progress_fd, NULL}, {"progress-every", &progress_every, NULL}, {"server-pid", &server_pid, NULL},
        {"announce", &announce, NULL}, {NULL, NULL, NULL},
    };
    read_options(count, words, options);
    if (clients_count < 1 || dead_count + slow_count + visitors_count > clients_count) refuse("--clients", "too few");
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) refuse("--host", "not an IPv4 address");
    if (progress_fd >= 0 && fcntl((int)progress_fd, F_SETFL, O_NONBLOCK)) fail("--progress-fd");
    signal(SIGPIPE, SIG_IGN);
    alarm((unsigned)((connect_timeout_ms + settle_ms + warm_up_ms + measure_ms) / 1000 + 10));
    raise_file_limit();
    poller = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc((size_t)clients_count, sizeof *clients);
    if (poller < 0 || !clients) fail("set-up");
    for (long i = 0; i < clients_count; i++) {
        clients[i].number = (unsigned)i;
        clients[i].kind = i < dead_count                                   ? DEAD
                          : i < dead_count + slow_count                    ? SLOW
                          : i < dead_count + slow_count + visitors_count   ? COMING_AND_GOING
                                                                           : READER;
    }
}

static void print_seen(void) {
    number("deliveries_before", (double)seen.before);
    number("p50_ms", latency_ms(0.50));
    number("p99_ms", latency_ms(0.99));
    number("max_ms", seen.latency_max_ms);
    number("gaps", (double)seen.gaps);
    number("missing", (double)seen.missing);
    number("duplicates", (double)seen.duplicates);
    number("malformed", (double)seen.malformed);
    number("foreign_epochs", (double)seen.foreign_epochs);
    number("errors", (double)seen.errors);
    number("lost", (double)seen.lost);
    number("dead_cut", (double)seen.dead_cut);
    number("slow_cut", (double)seen.slow_cut);
    number("latest_cut_ms", seen.latest_cut_ms);
    number("slow_received", (double)seen.slow_received);
    number("visitors_received", (double)seen.visitors_received);
    number("resumes", (double)seen.resumes);
    number("pongs", (double)seen.pongs);
    number("heart_beats", (double)seen.heart_beats);
    number("first_us", (double)(first_ns / 1000)); /* CLOCK_MONOTONIC */
    number("last_us", (double)(last_ns / 1000));
}

int main(int count, char **words) {
    set_up(count, words);
    long rss_before = server_rss_kib();
    double cpu_before = server_cpu_s();
    double connect_s = connect_all();
    double cpu_connected = server_cpu_s();
    idle(settle_ms);
    long rss_idle = server_rss_kib();
    if (announce) puts("connected"), fflush(stdout);

    went_at_ns = now_ns();
    tell_progress(0);
    receive(warm_up_ms);
    measuring = true;
    seen.bytes = seen.reads = 0;
    double cpu_start = server_cpu_s(), own_start = own_cpu_s();
    long rss_start = server_rss_kib();
    int64_t start_ns = now_ns();
    long rss_peak = receive(measure_ms);
    double seconds = (double)(now_ns() - start_ns) / NS_PER_S;
    double cpu_s = server_cpu_s() - cpu_start, own_s = own_cpu_s() - own_start;

    double deliveries = (double)seen.deliveries, any = deliveries ? deliveries : 1;
    number("clients", (double)clients_count);
    number("connects_per_s", (double)clients_count / connect_s);
    number("connect_cpu_ms", (cpu_connected - cpu_before) * 1000 / (double)clients_count);
    number("rss_before_kib", (double)rss_before);
    number("rss_idle_kib", (double)rss_idle);
    number("kib_per_connection", (double)(rss_idle - rss_before) / (double)clients_count);
    number("rss_start_kib", (double)rss_start);
    number("rss_peak_kib", (double)rss_peak);
    number("rss_end_kib", (double)server_rss_kib());
    number("deliveries", deliveries);
    number("seconds", seconds);
    number("deliveries_per_s", deliveries / seconds);
    number("bytes_per_delivery", (double)seen.bytes / any);
    number("deliveries_per_read", deliveries / (double)(seen.reads ? seen.reads : 1));
    number("server_cpu_us", cpu_s * 1e6 / any);
    number("server_cpu_share", cpu_s / seconds);
    number("load_cpu_share", own_s / seconds);
    print_seen();
    puts("}");
    return 0;
}
