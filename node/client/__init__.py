"""The asking side: sessions over a route of servers, and text from them. Knows no server code."""
