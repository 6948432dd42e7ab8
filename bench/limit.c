/* The physical limit: a server that answers the handshake and then only hands prebuilt bytes to the kernel.
 *
 * All its clients get the same bytes, so it has one log of frames and for each client a cursor into it. It reads
 * only the frames that the load client (load.c) sends, and checks nothing. No server that sends the same
 * events in the same number of writes can be faster on this machine.
 *
 * Its producer reads progress from standard input (load.c), and ends with it. The options are those of
 * bench/pace.py.
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

enum { CLIENTS_MAX = 20000, LOG_BYTES = 64 << 20, FRAME_BYTES_MAX = 1024, EVENTS_PER_WAIT = 1024, BODY_BYTES = 348 };
enum phase { UPGRADING, GREETING, SUBSCRIBING, SUBSCRIBED };

struct client {
    int fd;
    enum phase phase;
    bool full; /* its socket accepts nothing now */
    size_t position;
};

static long least = 1, most = 1, window_events = 64, rate, body_bytes = BODY_BYTES;
static struct client clients[CLIENTS_MAX];
static int clients_count, poller, listening;
static char *events_log;
static size_t head;              /* of the log, in octets */
static uint64_t produced, reached; /* events */
static bool going;
static int64_t went_at_ns;

static void leave(struct client *client) {
    close(client->fd);
    client->fd = -1;
}

static void send_text(struct client *client, const char *payload, size_t size) {
    char frame[256] = {(char)0x81, (char)size};
    memcpy(frame + 2, payload, size);
    if (size > 125 || send(client->fd, frame, size + 2, MSG_NOSIGNAL) != (ssize_t)size + 2) leave(client);
}

static void on_readable(struct client *client) {
    static const char upgraded[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   "Sec-WebSocket-Accept: " WS_ACCEPT "\r\nSec-WebSocket-Protocol: v12.stomp\r\n\r\n";
    static const char connected[] = "CONNECTED\nversion:1.2\nserver:limit\nsession:0\nheart-beat:0,0\n\n";
    static const char receipt[] = "RECEIPT\nreceipt-id:s\n\n";
    char ignored[4096];
    ssize_t size = recv(client->fd, ignored, sizeof ignored, 0);
    if (size <= 0) {
        if (!size || errno != EAGAIN) leave(client);
        return;
    }
    switch (client->phase) { /* each of these is received completely, after the answer to the one before */
        case UPGRADING:
            if (send(client->fd, upgraded, sizeof upgraded - 1, MSG_NOSIGNAL) < 0) leave(client);
            break;
        case GREETING: send_text(client, connected, sizeof connected); break;
        case SUBSCRIBING:
            client->position = head;
            send_text(client, receipt, sizeof receipt);
            break;
        case SUBSCRIBED: return;
    }
    client->phase++;
}

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
        if (fd < 0) return;
        if (clients_count == CLIENTS_MAX) refuse("clients", "too many");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct client *client = &clients[clients_count++];
        client->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

static void append_event(void) {
    static char padding[FRAME_BYTES_MAX];
    if (!*padding) memset(padding, 'x', sizeof padding);
    char body[FRAME_BYTES_MAX], payload[FRAME_BYTES_MAX + 256];
    uint64_t number = ++produced;
    int used = snprintf(body, sizeof body,
                        "{\"type\":\"message.updated\",\"payload\":{\"conversation_id\":\"c0\",\"channel_id\":\"ch1\","
                        "\"message\":{\"id\":\"m%lu\",\"content\":{\"t\":%ld,\"n\":%lu,\"text\":\"",
                        number, now_ns(), number);
    static const char rest[] = "\"},\"delivery_state\":\"pending\",\"from_contact\":true,"
                               "\"sent_at\":\"2020-10-25T21:24:54.560Z\",\"source\":\"facebook\","
                               "\"sender\":{\"id\":\"github:12345\"}}}}";
    int pad = (int)body_bytes - used - (int)sizeof rest + 1;
    int length = used + snprintf(body + used, sizeof body - (size_t)used, "%.*s%s", pad > 0 ? pad : 0, padding, rest);
    int size = snprintf(payload, sizeof payload,
                        "MESSAGE\ndestination:/events\nsubscription:0\nmessage-id:limit0-%lu\n"
                        "content-type:application/json\ncontent-length:%d\n\n%s",
                        number, length, body) + 1;
    char *frame = events_log + head;
    frame[0] = (char)0x81;
    frame[1] = 126;
    frame[2] = (char)(size >> 8);
    frame[3] = (char)size;
    memcpy(frame + 4, payload, (size_t)size);
    head += (size_t)size + 4;
}

/* Make room by dropping what all clients have. */
static void trim_log(void) {
    size_t had_by_all = head;
    for (int i = 0; i < clients_count; i++)
        if (clients[i].fd >= 0 && clients[i].phase == SUBSCRIBED && clients[i].position < had_by_all)
            had_by_all = clients[i].position;
    if (!had_by_all) refuse("a client", "is too far behind");
    memmove(events_log, events_log + had_by_all, head - had_by_all);
    head -= had_by_all;
    for (int i = 0; i < clients_count; i++) clients[i].position -= clients[i].position < had_by_all ? 0 : had_by_all;
}

static long due(void) {
    if (!going) return 0;
    if (rate) return (long)((double)(now_ns() - went_at_ns) / NS_PER_S * (double)rate) - (long)produced;
    long room = window_events - (long)(produced - reached);
    return room < least ? 0 : room < most ? room : most;
}

static bool produce(void) {
    long count = due();
    if (count <= 0) return false;
    if (head + (size_t)count * FRAME_BYTES_MAX * 2 > LOG_BYTES) trim_log();
    if (head + (size_t)count * FRAME_BYTES_MAX * 2 > LOG_BYTES) refuse("the log", "is too small for this rate");
    while (count--) append_event();
    return true;
}

static void watch(struct client *client, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event)) fail("epoll_ctl");
}

static void serve(struct client *client) {
    ssize_t sent = send(client->fd, events_log + client->position, head - client->position, MSG_NOSIGNAL);
    if (sent > 0) client->position += (size_t)sent;
    if (sent < 0 && errno != EAGAIN) {
        leave(client);
        return;
    }
    bool full = client->position < head;
    if (full != client->full) watch(client, full ? EPOLLIN | EPOLLOUT : EPOLLIN);
    client->full = full;
}

static void serve_all(void) {
    for (int i = 0; i < clients_count; i++) {
        struct client *client = &clients[i];
        if (client->fd >= 0 && client->phase == SUBSCRIBED && !client->full && client->position < head) serve(client);
    }
}

static void hear_progress(void) {
    uint64_t records[512];
    ssize_t size = read(STDIN_FILENO, records, sizeof records);
    if (size == 0) exit(0);
    if (size < (ssize_t)sizeof *records) return;
    reached = records[size / (ssize_t)sizeof *records - 1];
    if (!going) went_at_ns = now_ns();
    going = true;
}

static void poll_all(int timeout_ms) {
    struct epoll_event events[EVENTS_PER_WAIT];
    int count = epoll_wait(poller, events, EVENTS_PER_WAIT, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        if (events[i].data.ptr == &listening) {
            accept_all();
        } else if (events[i].data.ptr == &poller) {
            hear_progress();
        } else {
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(client);
            if (client->fd >= 0 && events[i].events & EPOLLOUT) serve(client);
        }
    }
}

static void listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listening < 0 || bind(listening, (struct sockaddr *)&address, size) || listen(listening, 4096)) fail("listen");
    if (getsockname(listening, (struct sockaddr *)&address, &size)) fail("getsockname");
    struct epoll_event connections = {.events = EPOLLIN, .data.ptr = &listening};
    struct epoll_event progress = {.events = EPOLLIN, .data.ptr = &poller};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listening, &connections)) fail("epoll_ctl");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &progress)) fail("standard input must be a pipe");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

int main(int count, char **words) {
    const struct option_of options[] = {
        {"least", &least, NULL}, {"most", &most, NULL}, {"window", &window_events, NULL}, {"rate", &rate, NULL},
        {"body-bytes", &body_bytes, NULL}, {NULL, NULL, NULL},
    };
    read_options(count, words, options);
    if (body_bytes > FRAME_BYTES_MAX - 256 || least < 1 || most < least) refuse("options", "out of range");
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    poller = epoll_create1(EPOLL_CLOEXEC);
    events_log = malloc(LOG_BYTES);
    if (poller < 0 || !events_log) fail("set-up");
    listen_on_loopback();
    for (;;) {
        bool more = produce();
        serve_all();
        poll_all(more ? 0 : rate && going ? 1 : 100);
    }
}
