# The host's hands in a queue directory. Read by any POSIX shell; what it prints is described in listing.rs.
#
#   sh -c SCRIPT pcb-queue MODE QUEUE LIMIT OWNER TURNS RELIST RECORD FENCE
#
# MODE    pump: until end of input, a poller and a reader of orders that end each other.
#         batch: takes the orders on stdin, then waits up to TURNS checks for requests, and ends.
# QUEUE   the queue directory. LIMIT: a longer request is announced, not sent.
# OWNER   the name of this channel; with RELIST 1 it takes the place of an earlier one, which claims no more.
# RELIST  1: says first what lies there from before.
# RECORD  a file that begins with the gateway's pid, or empty.
# FENCE   a number that grows with each owner of the session, or empty. A run does nothing once a later owner was here.
umask 077
LC_ALL=C
export LC_ALL
unset CDPATH
set -C
trap '' PIPE
mode=$1 queue=$2 limit=$3 owner=$4 turns=$5 relist=$6 record=$7 fence=$8 main=$$

refuse() {
    echo "$1" >&2
    exit 3
}

[ ! -L "$queue" ] || refuse "the queue is a symbolic link"
mkdir -p "$queue" || exit 3
cd -P "$queue" || exit 3

# Whether no later owner of the session has been here; the file `fence` holds the number of the last. Says so where one was.
in_time() {
    [ -n "$fence" ] || return 0
    last=''
    if [ -f fence ] && [ ! -L fence ]; then read -r last rest <fence; fi
    # What is no number of ours tells of no owner.
    case $last in '' | *[!0-9]* | ???????????????????*) last=-1 ;; esac
    if [ "$last" -gt "$fence" ]; then
        echo "<B $last>"
        return 1
    fi
    [ "$last" -lt "$fence" ] || return 0
    # Under a name of its own, so that each writes a whole one.
    rm -rf "fence.$owner"
    [ ! -d fence ] || rm -rf fence
    echo "$fence" >"fence.$owner" && mv -f "fence.$owner" fence
}
in_time || exit 0
for folder in requests responses claimed; do
    [ -d "$folder" ] || mkdir "$folder" || exit 3
    [ ! -L "$folder" ] || refuse "$folder in the queue is a symbolic link"
done

# Each wait costs one process; without fractions of a second it is one per second. Counted in checks of 50 ms.
if sleep 0.05 2>/dev/null; then nap=0.05 checks=1 long=0.25; else nap=1 checks=20 long=1; fi
idle=0

# Some `head` read ahead of what they print, and would swallow the orders that follow.
exact=0
[ "$(printf 'ab' | { head -c 1 >/dev/null; cat; })" = b ] && exact=1

is_entry() {
    case $1 in .* | -* | *[!A-Za-z0-9._-]*) return 1 ;; esac
    [ "${#1}" -le 133 ]
}

# Prints one claimed request.
show() {
    [ -f "claimed/$1" ] && [ ! -L "claimed/$1" ] || return 0
    # Some `wc` read all there is to count it.
    size=$(head -c "$((limit + 1))" "claimed/$1" 2>/dev/null | wc -c) || return 0
    size=$((size))
    if [ "$size" -gt "$limit" ]; then
        echo "L ${1%.json} $size" || exit 0
        return 0
    fi
    echo "R ${1%.json} $size" || exit 0
    if [ "$size" -gt 0 ]; then head -c "$size" "claimed/$1" 2>/dev/null | base64 2>/dev/null; fi
    echo . || exit 0
}

# Claims what waits, by rename, and prints it; fails when nothing was there.
take() {
    [ -d requests ] && [ ! -L requests ] && [ ! -L claimed ] || return 1
    set --
    for path in requests/*.json; do
        name=${path#requests/}
        is_entry "$name" && [ -f "$path" ] && [ ! -L "$path" ] || continue
        if [ -e "claimed/$name" ] || [ -L "claimed/$name" ]; then
            # The same name again while the first is served: the first one's answer is the answer.
            rm -f "$path"
            continue
        fi
        set -- "$@" "$path"
        [ $# -lt 64 ] || break
    done
    [ $# -gt 0 ] || return 1
    mv -f "$@" claimed/ 2>/dev/null
    for path; do show "${path#requests/}"; done
}

# Says what lies there from before.
recall() {
    for path in claimed/*.json; do
        name=${path#claimed/}
        if is_entry "$name"; then show "$name"; fi
    done
    for path in responses/*.json; do
        name=${path#responses/}
        if is_entry "$name" && [ -f "$path" ] && [ ! -L "$path" ]; then echo "O ${name%.json}" || exit 0; fi
    done
}

# Puts stdin at the place of one response; the name is the host's. A reader never sees half of it.
answer() {
    part=responses/$1.json.tmp whole=responses/$1.json
    if [ -e "$part" ] || [ -L "$part" ]; then rm -rf "$part"; fi
    if [ -L responses ] || ! { base64 -d >"$part"; } 2>/dev/null; then
        # What is left of it must not be taken for an order.
        cat >/dev/null
        rm -f "$part"
        echo "<F $1>"
    elif [ ! -f "claimed/$1.json" ]; then
        rm -f "$part"
        echo "<G $1>"
    elif [ -e "$whole" ] || [ -L "$whole" ]; then
        rm -f "$part" "claimed/$1.json"
        echo "<A $1>"
    elif mv -f "$part" "$whole"; then
        rm -f "claimed/$1.json"
        echo "<A $1>"
    else
        rm -f "$part"
        echo "<F $1>"
    fi
}

# Says so when the gateway's process has ended.
watch() {
    pid=''
    if [ -n "$record" ] && [ -f "$record" ]; then read -r pid rest <"$record"; fi
    [ -z "$pid" ] || kill -0 "$pid" 2>/dev/null || echo X || exit 0
}

lines() {
    while IFS= read -r line && [ "$line" != . ]; do echo "$line"; done
}

forget() {
    for id; do
        for path in "claimed/$id.json" "responses/$id.json"; do
            if [ -e "$path" ] || [ -L "$path" ]; then rm -rf "$path"; fi
        done
    done
}

# Tells the gateway that its host lives; by rename, so that no link is followed.
alive() {
    if [ -e alive.tmp ] || [ -L alive.tmp ]; then rm -rf alive.tmp; fi
    echo "$owner" >alive.tmp && mv -f alive.tmp host.alive
}

# Follows the orders on stdin until `E` or end of input.
obey() {
    while IFS= read -r order; do
        set -f
        # Split at blanks: orders hold nothing that a shell would expand.
        set -- $order
        set +f
        in_time || return 0
        case ${1-} in
        W) head -c "$3" | answer "$2" ;;
        w) lines | answer "$2" ;;
        D)
            shift
            forget "$@"
            ;;
        T) alive ;;
        E) return 0 ;;
        esac
    done
}

# Ends a pump that a lost connection left behind, then takes its place.
take_over() {
    before=''
    if [ -f pump ] && [ ! -L pump ]; then read -r before rest <pump; fi
    rm -rf pump.tmp
    echo "$owner $main" >pump.tmp
    mv -f pump.tmp pump
    [ -z "$before" ] || sleep "$nap"
    [ -z "$before" ] || sleep "$nap"
}

# Whether no later run has taken the place of this one.
is_mine() {
    mine=''
    if [ -f pump ] && [ ! -L pump ]; then read -r mine rest <pump; fi
    [ "$mine" = "$owner" ]
}

# Waits for the next look at the requests; after five seconds without any five times as long. Says in `spent` how long.
rest() {
    idle=$((idle + checks)) spent=$checks
    if [ "$idle" -le 100 ]; then
        sleep "$nap"
    else
        [ "$nap" = "$long" ] || spent=$((checks * 5))
        sleep "$long"
    fi
}

poll() {
    trap 'kill "$main" 2>/dev/null' EXIT
    [ "$relist" != 1 ] || recall
    beat=0
    while kill -0 "$main" 2>/dev/null; do
        is_mine && in_time || exit 0
        if take; then idle=0 spent=$checks; else rest; fi
        beat=$((beat + spent))
        if [ "$beat" -ge 100 ]; then
            beat=0
            echo K || exit 0
            watch
        fi
    done
}

now=$(date +%s 2>/dev/null) || now=-
if [ "$mode" = pump ]; then
    take_over
    echo "H 1 $exact $now" || exit 0
    poll </dev/null &
    poller=$!
    # Bash reads ahead on a terminal, and would swallow what follows an order; from a pipe it does not.
    if [ -t 0 ]; then cat | obey; else obey; fi
    kill "$poller" 2>/dev/null
    wait "$poller" 2>/dev/null
    exit 0
fi

echo "H 1 $exact $now"
[ "$relist" != 1 ] || take_over
obey
[ "$relist" != 1 ] || recall
if [ "$turns" -ge 0 ]; then
    watch
    waited=0
    while is_mine && in_time && ! take; do
        [ "$waited" -lt "$turns" ] || break
        rest
        waited=$((waited + spent))
    done
fi
echo Z
